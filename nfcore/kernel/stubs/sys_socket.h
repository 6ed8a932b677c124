/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

struct sockaddr {
	unsigned short sa_family;
	char sa_data[14];
};
