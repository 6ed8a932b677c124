/* SPDX-License-Identifier: GPL-2.0-only */
/* From a packet's destination to its VIP. */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "katran_abi.h"

static __always_inline struct vip_meta *vip_by_port(const struct packet *packet, __be16 port)
{
	struct vip_definition vip = {};
	struct vip_meta *meta;

	__builtin_memcpy(vip.addr, packet->flow.dst, sizeof(vip.addr));
	vip.port = port;
	vip.proto = packet->flow.proto;
	meta = bpf_map_lookup_elem(MAP(vip_map), &vip);
	if (!meta) {
		struct vip_lpm_key key = {.prefixlen = 32 + 128};

		__builtin_memcpy(key.addr, packet->flow.dst, sizeof(key.addr));
		key.port = port;
		key.proto = packet->flow.proto;
		meta = bpf_map_lookup_elem(MAP(vip_lpm_map), &key);
	}
	return meta;
}

/*
 * The packet's VIP or NULL. A VIP with port 0 takes every port. Unless its flags put the destination port into the
 * hash, the port does not distinguish flows either: it becomes 0 in `key`, the flow's key in the connection table.
 */
static __always_inline struct vip_meta *find_vip(const struct packet *packet, struct flow_key *key)
{
	struct vip_meta *meta = vip_by_port(packet, packet->flow.dport);

	if (meta)
		return meta;
	meta = vip_by_port(packet, 0);
	if (meta && !(meta->flags & (VIP_HASH_DPORT_ONLY | VIP_HASH_SRC_DST_PORT)))
		key->dport = 0;
	return meta;
}
