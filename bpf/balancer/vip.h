/* SPDX-License-Identifier: GPL-2.0-only */
/* From a packet's destination to its VIP. */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "katran_abi.h"
#include "ring.h"

/* A VIP with the packet's destination address and `proto`, whatever its port. */
static __always_inline struct vip_meta *vip_of_address(const struct packet *packet, __u8 proto, int family)
{
	struct vip_address_key key = {.prefixlen = 32 + 128, .family = family == AF_INET ? 4 : 6, .proto = proto};

	__builtin_memcpy(key.addr, packet->flow.dst, sizeof(key.addr));
	return bpf_map_lookup_elem(MAP(vip_addresses), &key);
}

/* Whether packets of the family may go to the VIP: 198.18.10.1 and c612:a01:: have the same key. */
static __always_inline int takes_family(const struct vip_meta *meta, int family)
{
	return !(meta->flags & (family == AF_INET ? VIP_ONLY_IPV6 : VIP_ONLY_IPV4));
}

/* The VIP with the longest prefix of the packet's family. A longer one of the other family may hide it. */
static __always_inline struct vip_meta *vip_by_prefix(const struct packet *packet, __be16 port, int family)
{
	struct vip_lpm_key key = {.prefixlen = 32 + 128, .port = port, .proto = packet->flow.proto};
	struct vip_meta *meta;

	__builtin_memcpy(key.addr, packet->flow.dst, sizeof(key.addr));
	meta = bpf_map_lookup_elem(MAP(vip_lpm_map), &key);
	if (!meta || takes_family(meta, family))
		return meta;
	if (!VIP_BENEATH(meta->flags))
		return NULL;
	key.prefixlen = 32 + VIP_BENEATH(meta->flags) - 1;
	meta = bpf_map_lookup_elem(MAP(vip_lpm_map), &key);
	return meta && takes_family(meta, family) ? meta : NULL;
}

/* The VIP of just this address, port and protocol. */
static __always_inline struct vip_meta *vip_by_address(const struct packet *packet, __be16 port, int family)
{
	struct vip_definition vip = {.port = port, .proto = packet->flow.proto};
	struct vip_meta *meta;

	__builtin_memcpy(vip.addr, packet->flow.dst, sizeof(vip.addr));
	meta = bpf_map_lookup_elem(MAP(vip_map), &vip);
	return meta && takes_family(meta, family) ? meta : NULL;
}

/*
 * The packet's VIP or NULL. A VIP with port 0 takes every port. Of a VIP with this port or a prefix, the destination
 * port becomes 0 in `hashed`, unless its flags put it into the hash: so also when a prefix has a port of its own, as
 * published.
 */
static __always_inline struct vip_meta *find_vip(const struct packet *packet, struct hashed_ports *hashed, int family)
{
	struct vip_meta *meta = vip_by_address(packet, packet->flow.dport, family);

	if (!meta) {
		meta = vip_by_prefix(packet, packet->flow.dport, family);
		if (!meta) {
			set_vip_port(hashed, 0);
			meta = vip_by_address(packet, 0, family);
			if (!meta)
				meta = vip_by_prefix(packet, 0, family);
		}
		if (meta && !(meta->flags & (VIP_HASH_DPORT_ONLY | VIP_HASH_SRC_DST_PORT)))
			hashed->dport = 0;
	}
	if (meta && meta->flags & VIP_HASH_NO_SRC_PORT)
		hashed->sport = 0;
	return meta;
}

/*
 * Whether a packet that cannot be balanced is addressed to a VIP: by its ports, or without them by its address. What
 * follows a fragment header of IPv6 may be any protocol: it is that of either kind of VIP then, as published.
 */
static __always_inline int is_addressed_to_vip(const struct packet *packet, enum parse_result result, int family)
{
	struct hashed_ports unused = {};

	if (result == PARSE_UNFIT)
		return find_vip(packet, &unused, family) != NULL;
	if (has_ports(packet->flow.proto))
		return vip_of_address(packet, packet->flow.proto, family) != NULL;
	return vip_of_address(packet, IPPROTO_TCP, family) || vip_of_address(packet, IPPROTO_UDP, family);
}
