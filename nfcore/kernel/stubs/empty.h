/* SPDX-License-Identifier: Apache-2.0 */
/* Nothing that an XDP program needs. */
