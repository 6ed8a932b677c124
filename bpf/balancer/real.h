/* SPDX-License-Identifier: GPL-2.0-only */
/* Finds the real of a number and sends a packet to it. */
#pragma once

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "device.h"
#include "encap.h"
#include "gue.h"
#include "katran_abi.h"
#include "reason.h"

/* Where a packet goes: the numbers of its VIP and real, and the real's definition, NULL while there is none. */
struct route {
	__u32 vip_num;
	__u32 real_key;
	struct real_definition *real;
#ifdef ROUTE_HAS_FLAGS
	__u32 vip_flags;
#endif
};

/* The real of this number, or NULL when there is none or it is gone. */
static __always_inline struct real_definition *live_real(__u32 real_key)
{
	struct real_definition *real = bpf_map_lookup_elem(MAP(reals), &real_key);

	return real && !(real->flags & REAL_GONE) ? real : NULL;
}

/* Sets the route's real. False when there is no real with this number, or it is gone. */
static __always_inline int route_to(struct route *route, __u32 real_key)
{
	route->real_key = real_key;
	route->real = live_real(real_key);
	return route->real != NULL;
}

static __always_inline void set_vip_flags(struct route *route, __u32 flags)
{
#ifdef ROUTE_HAS_FLAGS
	route->vip_flags = flags;
#endif
}

/* Whether the packets of this route are for this host. */
static __always_inline int is_local(const struct route *route)
{
#ifdef LOCAL_DELIVERY
	return route->vip_flags & VIP_LOCAL && route->real->flags & REAL_LOCAL;
#else
	return 0;
#endif
}

static __always_inline int encapsulate(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
				       const struct ctl_value *gateway, const struct real_definition *real, int family)
{
#ifdef ENCAP_GUE
	return encap_gue(ctx, packet, device, gateway, real, family);
#else
	if (family == AF_INET && !(real->flags & REAL_IPV6))
		return encap_ipv4(ctx, packet, device, gateway, real->addr[0]);
#if defined(ROUTES_BY_ID) || defined(SOURCE_ROUTING)
	/* The TOML gives an IPv6 VIP no such real, but an id or a source route may name any. */
	if (family == AF_INET6 && !(real->flags & REAL_IPV6)) {
		count_v2(STATS_ENCAP_FAIL);
		return because(packet, REASON_FAMILY, XDP_DROP);
	}
#endif
	return encap_ipv6(ctx, packet, device, gateway, real, family);
#endif
}

static __always_inline void count_routed(const struct packet *packet, const struct route *route)
{
	count_bytes(route->vip_num, packet->ip_bytes);
	count_real(route->real_key, packet->ip_bytes);
}

/* Counts the packet for its VIP and real and sends it to the real. */
static __always_inline int send_to_real(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					const struct route *route, int family)
{
	const struct ctl_value *gateway;

	note_real(packet, route->vip_num, route->real_key);
	if (is_local(route)) {
		count_routed(packet, route);
		return XDP_PASS;
	}
	gateway = next_hop(device, route->real);
	if (!gateway) {
		count_v1(STATS_NO_NEXT_HOP);
		return because(packet, REASON_NO_NEXT_HOP, XDP_DROP);
	}
	count_routed(packet, route);
	return encapsulate(ctx, packet, device, gateway, route->real, family);
}
