/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tunnels that end here, IPIP and GUE: what is inside is balanced as if it had come by itself, goes out again (egress),
 * or is the stack's.
 *
 * Build choices: DECAP_IPIP, DECAP_GUE (with GUE_PORT), DECAP_STRICT (only to addresses of `decap_dst` and the own ones).
 */
#pragma once

#include <linux/udp.h>

#include "lib/carriers/carrier.h"
#include "lib/decap_address.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "ethernet.h"
#include "katran_abi.h"
#include "reason.h"
#include "vip.h"

#ifdef ENDS_TUNNELS
/* What is no verdict: the packet is in no tunnel that ends here; what was inside is to be balanced. */
#define NO_TUNNEL -1
#define BALANCE_AGAIN -2

/* What is in a tunnel. */
struct inside {
	__u16 at; /* offset of its IP header */
	__u8 family;
	__u8 is_whole; /* an IP header of this family is there */
	__u8 is_gue;
};

/* Whether a packet is in a tunnel of a kind that ends here, and what is inside. */
static __always_inline int find_inside(struct inside *inside, const struct packet *packet, void *data, void *data_end,
				       int family)
{
	__u8 *first;

	inside->at = l4_at(packet, family);
	inside->is_gue = packet->flow.proto == IPPROTO_UDP;
	if (inside->is_gue)
		inside->at += sizeof(struct udphdr);
	first = data + inside->at;
	if (!inside->is_gue)
		inside->family = packet->flow.proto == IPPROTO_IPIP ? 4 : 6;
	else if ((void *)(first + 1) > data_end)
		return 0;
	else
		inside->family = *first >> 4;
	/* Variant 0 of GUE has a header of its own, and is not ours. */
	if (inside->family != 4 && inside->family != 6)
		return 0;
	inside->is_whole =
		(void *)first + (inside->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) <= data_end &&
		*first >> 4 == inside->family;
	return 1;
}

/* Flags of the tunnel's destination, or 0 when it is not in `decap_dst`: an entry has a flag of its family. */
static __always_inline __u32 decap_flags(const struct packet *packet, int family)
{
	__u32 *flags = bpf_map_lookup_elem(MAP(decap_dst), packet->flow.dst);

	return flags && *flags & (family == AF_INET ? DECAP_IPV4 : DECAP_IPV6) ? *flags : 0;
}

static __always_inline int is_own_source(const struct packet *packet, int family)
{
#ifdef DECAP_STRICT
	__u32 slot = family == AF_INET ? 0 : 1;
	struct real_definition *own = bpf_map_lookup_elem(MAP(pckt_srcs), &slot);

	return own && same_address(own->addr, packet->flow.dst);
#else
	return 1;
#endif
}

/* Takes the inner packet's TTL down by one; false when it has none left. */
static __always_inline int age_inner(void *ip, __u8 family)
{
	struct iphdr *v4 = ip;
	struct ipv6hdr *v6 = ip;
	__u32 sum;

	if (family != 4) {
		if (v6->hop_limit <= 1)
			return 0;
		v6->hop_limit -= 1;
		return 1;
	}
	if (v4->ttl <= 1)
		return 0;
	v4->ttl -= 1;
	sum = (__u32)bpf_ntohs(v4->check) + 0x0100;
	v4->check = bpf_htons((sum & 0xffff) + (sum >> 16));
	return 1;
}

/* Removes the outer header. False when the packet's life ends here. */
static __always_inline int take_off(struct xdp_md *ctx, const struct packet *packet, const struct inside *inside)
{
	int outer = inside->at - ip_at(packet);
	void *data = (void *)(long)ctx->data, *data_end, *ip;
	struct link_header link;

	if (data + MOST_LINK_BYTES > (void *)(long)ctx->data_end)
		return 0;
	read_link_header(&link, packet, data);
	carrier_release(ctx); /* a mark was the tunnel's, not that of what is inside */
	if (bpf_xdp_adjust_head(ctx, outer))
		return 0;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	ip = data + ip_at(packet);
	if (data + MOST_LINK_BYTES > data_end || ip + sizeof(struct iphdr) > data_end)
		return 0;
	write_link_header(&link, data, inside->family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6));
	return age_inner(ip, inside->family);
}

/* Counts what is passed to the stack out of GUE for the VIP that it is addressed to. */
static __always_inline void count_passed(struct xdp_md *ctx, const struct packet *outer, __u8 family)
{
#ifdef DECAP_GUE
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet packet = {};
	struct vip_meta *vip;
	struct lb_stats *stats;

#ifdef VLAN
	packet.tag_bytes = outer->tag_bytes;
#endif
	if ((family == 4 ? read_ipv4(&packet, data, data_end) : read_ipv6(&packet, data, data_end)) != PARSE_OK)
		return;
	vip = vip_by_address(&packet, packet.flow.dport, family == 4 ? AF_INET : AF_INET6);
	stats = vip ? bpf_map_lookup_elem(MAP(decap_vip_stats), &vip->vip_num) : NULL;
	if (stats)
		stats->v1 += 1;
#endif
}

/* Ends a tunnel. Returns a verdict, NO_TUNNEL, or BALANCE_AGAIN for what came to an address of `decap_dst`. */
static __always_inline int end_tunnel(struct xdp_md *ctx, const struct packet *packet, int family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct inside inside = {};
	int inner_family;
	__u32 flags;

	if (!find_inside(&inside, packet, data, data_end, family))
		return NO_TUNNEL;
	flags = decap_flags(packet, family);
	if (flags)
		count_v1(STATS_DECAP_ADDRESS);
	else if (!is_own_source(packet, family))
		return because(packet, REASON_OTHER_TUNNEL, XDP_PASS);
	if (!inside.is_whole)
		return because(packet, REASON_MALFORMED, XDP_DROP);
	note_reason(packet, REASON_DECAPSULATED);
	count_family(STATS_DECAP, family);
	if (!take_off(ctx, packet, &inside))
		return because(packet, REASON_TTL, XDP_DROP);
	inner_family = inside.family == 4 ? AF_INET : AF_INET6;
	if (!flags) {
		if (inside.is_gue)
			count_passed(ctx, packet, inside.family);
		return XDP_PASS;
	}
	if (inside.is_gue && flags & DECAP_EGRESS) {
		data = (void *)(long)ctx->data;
		if (data + sizeof(struct ethhdr) > (void *)(long)ctx->data_end)
			return XDP_DROP;
		count_family(STATS_EGRESS_DECAP, inner_family);
		swap_macs(data);
		return XDP_TX;
	}
	count_family(STATS_CROSS_POP, inner_family);
	return BALANCE_AGAIN;
}
#endif
