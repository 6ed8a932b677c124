/* SPDX-License-Identifier: GPL-2.0-only */
/* A 5-tuple in network byte order. An IPv4 address fills the first word, the rest is zero. */
#pragma once

#include <linux/types.h>

struct flow_key {
	__be32 src[4];
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3]; /* of a packet 0; user space keeps there what a masked match leaves open */
};

static __always_inline int same_address(const __be32 left[4], const __be32 right[4])
{
	return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) | (left[3] ^ right[3]));
}
