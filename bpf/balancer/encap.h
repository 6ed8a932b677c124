/* SPDX-License-Identifier: GPL-2.0-only */
/* Outer headers, and IPIP: IPv4 over IPv4, IPv6 over either. */
#pragma once

#include <linux/if_ether.h>

#include "lib/carriers/carrier.h"
#include "lib/ipv4_checksum.h"
#include "lib/packet.h"
#include "counters.h"
#include "device.h"
#include "ethernet.h"
#include "katran_abi.h"
#include "outer_header.h"
#include "reason.h"

/*
 * Moves the head by `outer_bytes` and writes the Ethernet header: from the interface to the gateway, with the tags of the
 * frame. Returns a pointer to the outer IP header, or NULL.
 */
static __always_inline void *open_headroom(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					   const struct ctl_value *gateway, __be16 protocol, int outer_bytes)
{
	struct link_header link;
	void *data, *data_end, *ip;

	carrier_release(ctx);
	if (bpf_xdp_adjust_head(ctx, -outer_bytes))
		return NULL;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	ip = data + ip_at(packet);
	if (ip + outer_bytes > data_end || data + outer_bytes + MOST_LINK_BYTES > data_end)
		return NULL;
	read_link_header(&link, packet, data + outer_bytes);
#ifdef OWN_SOURCE
	copy_mac(link.source, device->mac);
#else
	copy_mac(link.source, link.destination);
#endif
	copy_mac(link.destination, gateway->mac);
	write_link_header(&link, data, protocol);
	return ip;
}

static __always_inline void fill_outer_ipv4(struct iphdr *ip, const struct packet *packet, __u16 bytes, __u8 protocol,
					    __be32 source, __be32 real)
{
	*(__u8 *)ip = 0x45;
	ip->tos = packet->tos;
	ip->tot_len = bpf_htons(bytes);
	ip->id = 0;
	ip->frag_off = 0;
	ip->ttl = OUTER_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = source;
	ip->daddr = real;
	ip->check = ipv4_checksum(ip);
}

/* All of an outer IPv6 header but its source. */
static __always_inline void fill_outer_ipv6(struct ipv6hdr *ip, const struct packet *packet, __u16 bytes, __u8 protocol,
					    const struct real_definition *real)
{
	*(__be32 *)ip = bpf_htonl(0x60000000u | (__u32)packet->tos << 20);
	ip->payload_len = bpf_htons(bytes);
	ip->nexthdr = protocol;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->daddr, real->addr, sizeof(ip->daddr));
}

/* Bytes of the whole packet that gets an outer header. */
static __always_inline __u16 inner_bytes(const struct packet *packet, int family)
{
	return family == AF_INET ? packet->ip_bytes : packet->ip_bytes + sizeof(struct ipv6hdr);
}

static __always_inline int encap_ipv4(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
				      const struct ctl_value *gateway, __be32 real)
{
	/* The bytes of the port are swapped, as in the published outer addresses. */
	__u16 spread = __builtin_bswap16(bpf_ntohs(packet->flow.sport)) ^ (bpf_ntohl(packet->flow.src[0]) & 0xffff);
	struct iphdr *ip = open_headroom(ctx, packet, device, gateway, bpf_htons(ETH_P_IP), sizeof(*ip));

	if (!ip) {
		count_v1(STATS_ENCAP_FAIL);
		return because(packet, REASON_NO_HEADROOM, XDP_DROP);
	}
	fill_outer_ipv4(ip, packet, packet->ip_bytes + sizeof(*ip), IPPROTO_IPIP, bpf_htonl(OUTER_V4_SOURCE | spread),
			real);
	return XDP_TX;
}

static __always_inline int encap_ipv6(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
				      const struct ctl_value *gateway, const struct real_definition *real, int family)
{
	__be32 spread = family == AF_INET ? packet->flow.src[0] : packet->flow.src[3];
	__u8 protocol = family == AF_INET ? IPPROTO_IPIP : IPPROTO_IPV6;
	struct ipv6hdr *ip = open_headroom(ctx, packet, device, gateway, bpf_htons(ETH_P_IPV6), sizeof(*ip));

	if (!ip) {
		count_v2(STATS_ENCAP_FAIL);
		return because(packet, REASON_NO_HEADROOM, XDP_DROP);
	}
	fill_outer_ipv6(ip, packet, inner_bytes(packet, family), protocol, real);
	ip->saddr.in6_u.u6_addr32[0] = bpf_htonl(OUTER_V6_SOURCE);
	ip->saddr.in6_u.u6_addr32[1] = 0;
	ip->saddr.in6_u.u6_addr32[2] = 0;
	ip->saddr.in6_u.u6_addr32[3] = spread ^ packet->flow.sport;
	return XDP_TX;
}
