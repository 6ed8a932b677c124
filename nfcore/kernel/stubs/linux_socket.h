/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <uapi/linux/socket.h>
#include <sys/socket.h>
