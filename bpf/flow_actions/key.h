/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What entries are matched with: ports, protocol and addresses of a packet in 64-bit words, each field in network byte
 * order.
 *
 *   word      0                                            1              2     3     4
 *   IPv4:     sport, dport │ protocol, unknown, shape      src │ dst
 *   IPv6:     sport, dport │ protocol, unknown, shape      src (2 words)        dst (2 words)
 *
 * The key of a masked entry has 0 where it matches anything, and the number of its shape: entries that leave the same
 * bits open have the same shape. Shape 0: exact entries.
 */
#pragma once

#include <linux/types.h>

#include "lib/packet.h"

#define KEY_WORDS_V4 2
#define KEY_WORDS_V6 5
#define PROTOCOL_SHIFT 32
#define SHAPE_SHIFT 48 /* behind the protocol's 9 bits */
#define UNKNOWN_PROTOCOL 0x100 /* behind too many extension headers: equal to no entry's protocol */

/* Of both families: an IPv4 key takes the first two words. */
struct match_key {
	__u64 words[KEY_WORDS_V6];
};

/* `family` is a constant wherever this is called. */
static __always_inline int key_words(int family)
{
	return family == AF_INET ? KEY_WORDS_V4 : KEY_WORDS_V6;
}

static __always_inline __u64 first_word(__u32 ports, __u32 protocol)
{
	return ports | (__u64)protocol << PROTOCOL_SHIFT;
}
