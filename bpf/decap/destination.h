/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a tunnel ends here. Without STRICT_DESTINATION every tunnel does, whatever its outer destination; with it,
 * those to an address of `decap_dst`: lib/decap_address.h.
 */
#pragma once

#include <linux/in6.h>
#include <linux/types.h>

#include "lib/decap_address.h"
#include "lib/map_handle.h"

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
