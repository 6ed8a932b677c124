/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a tunnel ends here. Without STRICT_DESTINATION every tunnel does, whatever its outer destination; with it,
 * those to an address of `decap_dst`. Its keys are as published: 16 bytes, of which IPv4 fills the first four. So a key
 * may stand for addresses of both families, and the value says for which.
 */
#pragma once

#include <linux/in6.h>
#include <linux/types.h>

#include "lib/map_handle.h"

#define DECAP_IPV4 (1u << 30)
#define DECAP_IPV6 (1u << 31)

struct decap_address {
	__be32 words[4];
};

static __always_inline int is_ipv4_destination(__be32 address)
{
#ifdef STRICT_DESTINATION
	struct decap_address key = {.words = {address}};
	__u32 *flags = bpf_map_lookup_elem(MAP(decap_dst), &key);

	return flags && *flags & DECAP_IPV4;
#else
	return 1;
#endif
}

static __always_inline int is_ipv6_destination(struct in6_addr *address)
{
#ifdef STRICT_DESTINATION
	struct decap_address key;
	__u32 *flags;

	__builtin_memcpy(&key, address, sizeof(key));
	flags = bpf_map_lookup_elem(MAP(decap_dst), &key);
	return flags && *flags & DECAP_IPV6;
#else
	return 1;
#endif
}
