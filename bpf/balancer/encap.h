/* SPDX-License-Identifier: GPL-2.0-only */
/* IPIP: an outer IPv4 header over IPv4, an outer IPv6 header over either. */
#pragma once

#include <linux/if_ether.h>

#include "lib/carriers/carrier.h"
#include "lib/ipv4_checksum.h"
#include "lib/packet.h"
#include "counters.h"
#include "device.h"
#include "katran_abi.h"
#include "outer_header.h"
#include "reason.h"

/*
 * Moves the head by `outer_bytes` and writes the Ethernet header: from the interface to the gateway. Returns a pointer
 * to the outer IP header, or NULL.
 */
static __always_inline void *open_headroom(struct xdp_md *ctx, const struct device *device,
					   const struct ctl_value *gateway, __be16 protocol, int outer_bytes)
{
	struct ethhdr *old, *new;
	void *data, *data_end;

	carrier_release(ctx);
	if (bpf_xdp_adjust_head(ctx, -outer_bytes))
		return NULL;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	new = data;
	old = data + outer_bytes;
	if ((void *)(old + 1) > data_end)
		return NULL;
#ifdef OWN_SOURCE
	__builtin_memcpy(new->h_source, device->mac, ETH_ALEN);
#else
	__builtin_memcpy(new->h_source, old->h_dest, ETH_ALEN);
#endif
	__builtin_memcpy(new->h_dest, gateway->mac, ETH_ALEN);
	new->h_proto = protocol;
	return new + 1;
}

static __always_inline int encap_ipv4(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
				      const struct ctl_value *gateway, __be32 real)
{
	/* The bytes of the port are swapped, as in the published outer addresses. */
	__u16 spread = __builtin_bswap16(bpf_ntohs(packet->flow.sport)) ^ (bpf_ntohl(packet->flow.src[0]) & 0xffff);
	struct iphdr *ip = open_headroom(ctx, device, gateway, bpf_htons(ETH_P_IP), sizeof(*ip));

	if (!ip) {
		count_v1(STATS_ENCAP_FAIL);
		return because(packet, REASON_NO_HEADROOM, XDP_DROP);
	}
	*(__u8 *)ip = 0x45;
	ip->tos = packet->tos;
	ip->tot_len = bpf_htons(packet->ip_bytes + sizeof(*ip));
	ip->id = 0;
	ip->frag_off = 0;
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_IPIP;
	ip->check = 0;
	ip->saddr = bpf_htonl(OUTER_V4_SOURCE | spread);
	ip->daddr = real;
	ip->check = ipv4_checksum(ip);
	return XDP_TX;
}

static __always_inline int encap_ipv6(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
				      const struct ctl_value *gateway, const struct real_definition *real, int family)
{
	__be32 spread = family == AF_INET ? packet->flow.src[0] : packet->flow.src[3];
	__u16 inner = family == AF_INET ? packet->ip_bytes : packet->ip_bytes + sizeof(struct ipv6hdr);
	struct ipv6hdr *ip = open_headroom(ctx, device, gateway, bpf_htons(ETH_P_IPV6), sizeof(*ip));

	if (!ip) {
		count_v2(STATS_ENCAP_FAIL);
		return because(packet, REASON_NO_HEADROOM, XDP_DROP);
	}
	*(__be32 *)ip = bpf_htonl(0x60000000u | (__u32)packet->tos << 20);
	ip->payload_len = bpf_htons(inner);
	ip->nexthdr = family == AF_INET ? IPPROTO_IPIP : IPPROTO_IPV6;
	ip->hop_limit = OUTER_TTL;
	ip->saddr.in6_u.u6_addr32[0] = bpf_htonl(OUTER_V6_SOURCE);
	ip->saddr.in6_u.u6_addr32[1] = 0;
	ip->saddr.in6_u.u6_addr32[2] = 0;
	ip->saddr.in6_u.u6_addr32[3] = spread ^ packet->flow.sport;
	__builtin_memcpy(&ip->daddr, real->addr, sizeof(ip->daddr));
	return XDP_TX;
}
