/* SPDX-License-Identifier: GPL-2.0-only */
/* One's complement sums, as in the checksums of IP, UDP, TCP and ICMP (RFC 1071). */
#pragma once

#include <linux/types.h>

/* The sum of 16-bit words that `sum` stands for. It does not depend on the width or the order of what was added. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}
