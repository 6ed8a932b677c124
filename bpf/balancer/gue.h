/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * GUE, variant 1: an outer IP and UDP header directly before the inner IP header. A real's NIC spreads flows over its
 * queues by the source port. The outer UDP checksum comes from the inner ones: all words inside add up to the inner IP
 * header less the inner pseudo header, when the inner checksum is right.
 */
#pragma once

#include <linux/udp.h>

#include "lib/checksum.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "counters.h"
#include "device.h"
#include "encap.h"
#include "katran_abi.h"
#include "reason.h"

#ifdef ENCAP_GUE
enum own_source { SOURCE_V4, SOURCE_V6 }; /* slots of `pckt_srcs` */

/* Sum of the 32-bit words at `from`. One's complement sums do not depend on the width or order of the words. */
static __always_inline __u64 add_words(const void *from, int words)
{
	const __u32 *word = from;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		if (i < words)
			sum += word[i];
	return sum;
}

/* Protocol in the inner IP header: that of an ICMP error is not that of the flow. */
static __always_inline __u8 inner_protocol(const struct packet *packet, int family)
{
	if (is_error(packet))
		return family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	return packet->flow.proto;
}

/*
 * Sum of all that is inside; 0 when the inner checksums do not tell it. The inner pseudo header is taken off, which
 * ICMPv4 does not have, and a UDP packet without checksum tells nothing. Katran does alike for all of them, and its
 * checksum is wrong for those two (GUE_CHECKSUM_KATRAN).
 */
static __always_inline __u64 inside_sum(const struct packet *packet, void *data, void *data_end, int family)
{
	void *ip = data + ip_at(packet), *l4 = data + l4_at(packet, family);
	__u16 l4_bytes =
		inner_bytes(packet, family) - (family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	__u8 protocol = inner_protocol(packet, family);
	__u64 header;

	if (l4 + sizeof(struct udphdr) > data_end)
		return 0;
	header = 0xffff + add_words(ip, family == AF_INET ? 5 : 10);
#ifndef GUE_CHECKSUM_KATRAN
	if (protocol == IPPROTO_ICMP)
		return header;
	if (protocol == IPPROTO_UDP && !((struct udphdr *)l4)->check)
		return 0;
#endif
	/* Less a word is more by its complement. */
	header += (__u16)~fold(add_words(ip + (family == AF_INET ? 12 : 8), family == AF_INET ? 2 : 8));
	header += (__u16)~bpf_htons(l4_bytes);
	header += (__u16)~bpf_htons(protocol);
	return header;
}

/* Source port in the outer header. The bytes are swapped for IPv4 in IPv4 alone, as published. */
static __always_inline __be16 gue_source_port(const struct packet *packet, int family, int outer_family)
{
	__be16 port = packet->flow.sport;

	if (family == AF_INET6)
		return port ^ (__be16)packet->flow.src[3];
	if (outer_family == AF_INET)
		port = __builtin_bswap16(port);
	return port ^ (__be16)(packet->flow.src[0] >> 16);
}

static __always_inline int encap_failed(const struct packet *packet, int family)
{
	count_family(STATS_ENCAP_FAIL, family);
	return because(packet, REASON_NO_HEADROOM, XDP_DROP);
}

/* Writes the UDP header; `pseudo`: sum of the outer addresses. A checksum of 0 would say that there is none. */
static __always_inline void fill_gue(struct udphdr *udp, __be16 source, __u16 bytes, __u64 inside, __u64 pseudo)
{
	__u16 sum;

	udp->source = source;
	udp->dest = bpf_htons(GUE_PORT);
	udp->len = bpf_htons(bytes);
	udp->check = 0;
	if (!inside)
		return;
	/* The length is in the header and in the pseudo header. */
	sum = ~fold(inside + pseudo + udp->source + udp->dest + 2 * (__u64)udp->len + bpf_htons(IPPROTO_UDP));
#ifdef GUE_CHECKSUM_KATRAN
	udp->check = sum;
#else
	udp->check = sum ? sum : 0xffff;
#endif
}

static __always_inline int encap_gue_ipv4(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					  const struct ctl_value *gateway, __be32 source, __be32 real, __u64 inside,
					  int family)
{
	__u16 bytes = inner_bytes(packet, family) + sizeof(struct udphdr);
	struct iphdr *ip =
		open_headroom(ctx, packet, device, gateway, bpf_htons(ETH_P_IP), sizeof(*ip) + sizeof(struct udphdr));

	if (!ip)
		return encap_failed(packet, family);
	fill_outer_ipv4(ip, packet, bytes + sizeof(*ip), IPPROTO_UDP, source, real);
	fill_gue((void *)(ip + 1), gue_source_port(packet, family, AF_INET), bytes, inside, (__u64)source + real);
	return XDP_TX;
}

static __always_inline int encap_gue_ipv6(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					  const struct ctl_value *gateway, const __be32 *source,
					  const struct real_definition *real, __u64 inside, int family)
{
	__u16 bytes = inner_bytes(packet, family) + sizeof(struct udphdr);
	struct ipv6hdr *ip =
		open_headroom(ctx, packet, device, gateway, bpf_htons(ETH_P_IPV6), sizeof(*ip) + sizeof(struct udphdr));

	if (!ip)
		return encap_failed(packet, family);
	fill_outer_ipv6(ip, packet, bytes, IPPROTO_UDP, real);
	__builtin_memcpy(&ip->saddr, source, sizeof(ip->saddr));
	fill_gue((void *)(ip + 1), gue_source_port(packet, family, AF_INET6), bytes, inside,
		 add_words(source, 4) + add_words(real->addr, 4));
	return XDP_TX;
}

static __always_inline int encap_gue(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
				     const struct ctl_value *gateway, const struct real_definition *real, int family)
{
	__u32 slot = real->flags & REAL_IPV6 ? SOURCE_V6 : SOURCE_V4;
	struct real_definition *source = bpf_map_lookup_elem(MAP(pckt_srcs), &slot);
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u64 inside;

	if (!source)
		return encap_failed(packet, family);
	inside = is_fragment(packet) ? 0 : inside_sum(packet, data, data_end, family);
	if (slot == SOURCE_V4)
		return encap_gue_ipv4(ctx, packet, device, gateway, source->addr[0], real->addr[0], inside, family);
	return encap_gue_ipv6(ctx, packet, device, gateway, source->addr, real, inside, family);
}
#endif
