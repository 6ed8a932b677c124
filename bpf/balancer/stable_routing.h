/* SPDX-License-Identifier: GPL-2.0-only */
/* UDP stable routing: the payload begins with a type and the id of the real. The connection table is not used. */
#pragma once

#include "lib/packet.h"
#include "katran_abi.h"
#include "real.h"
#include "server_id.h"

#ifdef UDP_STABLE_ROUTING
#define STABLE_TYPE 0x52
#define STABLE_BYTES 8
#define COUNT_STABLE(field) COUNT_FIELD(stable_rt_stats, stable_routing_stats, field)

static __always_inline enum id_result route_by_stable_id(struct xdp_md *ctx, const struct packet *packet,
							 struct route *route, int family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u8 *payload = data + l4_at(packet, family) + UDP_HEADER_BYTES;
	__u32 id, *real_key;

	if ((void *)(payload + STABLE_BYTES) > data_end || payload[0] != STABLE_TYPE) {
		COUNT_STABLE(invalid_packet_type);
		COUNT_STABLE(ch_routed);
		return ID_NONE;
	}
	id = payload[1] << 16 | payload[2] << 8 | payload[3];
	if (!id) {
		COUNT_STABLE(ch_routed);
		return ID_NONE;
	}
	real_key = real_of_id(id);
	if (!real_key) {
		COUNT_STABLE(cid_invalid_server_id);
		COUNT_STABLE(ch_routed);
		return ID_NONE;
	}
	if (!*real_key)
		return ID_NONE;
	if (!route_to(route, *real_key)) {
		COUNT_STABLE(cid_unknown_real_dropped);
		return ID_OF_NOBODY;
	}
	COUNT_STABLE(cid_routed);
	return ID_NAMES_REAL;
}
#endif
