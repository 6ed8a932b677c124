/* SPDX-License-Identifier: GPL-2.0-only */
/* Packets of a VIP that are too long: dropped, or built with TOO_BIG, the client is told the MTU. */
#pragma once

#include <linux/icmp.h>
#include <linux/icmpv6.h>

#include "lib/carriers/carrier.h"
#include "lib/checksum.h"
#include "lib/ipv4_checksum.h"
#include "lib/packet.h"
#include "counters.h"
#include "ethernet.h"
#include "introspection.h"
#include "katran_abi.h"
#include "reason.h"

#define QUOTED_OF_IPV4 84
#define QUOTED_OF_IPV6 248
#define ERROR_TTL 64

/* Whether the packet is too long to be balanced. Tags do not count. */
static __always_inline int is_too_big(const struct packet *packet)
{
	return packet->frame_bytes > ip_at(packet) + MTU;
}

#ifdef TOO_BIG
/*
 * Cuts the packet after `quoted` bytes and opens `headers` bytes in front of it, with the Ethernet header back to the
 * client. Returns a pointer to these bytes, or NULL.
 */
static __always_inline void *open_error(struct xdp_md *ctx, const struct packet *packet, __be16 protocol, int headers,
					int quoted)
{
	int cut = ip_at(packet) + quoted - (int)packet->frame_bytes;
	struct link_header link;
	void *data, *data_end, *ip;

	carrier_release(ctx);
	if (bpf_xdp_adjust_tail(ctx, cut) || bpf_xdp_adjust_head(ctx, -headers))
		return NULL;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	ip = data + ip_at(packet);
	if (ip + headers + quoted > data_end || data + headers + MOST_LINK_BYTES > data_end)
		return NULL;
	read_link_header(&link, packet, data + headers);
	write_link_header(&link, data, protocol);
	swap_macs(data);
	return ip;
}

static __always_inline int tell_mtu_v4(struct xdp_md *ctx, const struct packet *packet)
{
	struct iphdr *ip = open_error(ctx, packet, bpf_htons(ETH_P_IP), sizeof(*ip) + sizeof(struct icmphdr),
				      QUOTED_OF_IPV4),
		     *quoted;
	struct icmphdr *icmp = (void *)(ip + 1);

	if (!ip)
		return XDP_DROP;
	quoted = (void *)(icmp + 1);
	*(__be32 *)ip = bpf_htonl(0x45000000u + sizeof(*ip) + sizeof(*icmp) + QUOTED_OF_IPV4);
	ip->id = 0;
	ip->frag_off = 0;
	ip->ttl = ERROR_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->check = 0;
	ip->saddr = quoted->daddr;
	ip->daddr = quoted->saddr;
	ip->check = ipv4_checksum(ip);
	icmp->type = ICMP_DEST_UNREACH;
	icmp->code = ICMP_FRAG_NEEDED;
	icmp->checksum = 0;
	icmp->un.gateway = bpf_htonl(MTU);
	icmp->checksum = ~fold(bpf_csum_diff(NULL, 0, (void *)icmp, sizeof(*icmp) + QUOTED_OF_IPV4, 0));
	return XDP_TX;
}

static __always_inline int tell_mtu_v6(struct xdp_md *ctx, const struct packet *packet)
{
	struct ipv6hdr *ip = open_error(ctx, packet, bpf_htons(ETH_P_IPV6), sizeof(*ip) + sizeof(struct icmp6hdr),
					QUOTED_OF_IPV6),
		       *quoted;
	struct icmp6hdr *icmp = (void *)(ip + 1);
	__u64 pseudo;

	if (!ip)
		return XDP_DROP;
	quoted = (void *)(icmp + 1);
	*(__be32 *)ip = bpf_htonl(0x60000000u);
	ip->payload_len = bpf_htons(sizeof(*icmp) + QUOTED_OF_IPV6);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ERROR_TTL;
	ip->saddr = quoted->daddr;
	ip->daddr = quoted->saddr;
	icmp->icmp6_type = ICMPV6_PKT_TOOBIG;
	icmp->icmp6_code = 0;
	icmp->icmp6_cksum = 0;
	icmp->icmp6_mtu = bpf_htonl(MTU);
	pseudo = bpf_csum_diff(NULL, 0, (void *)&ip->saddr, 2 * sizeof(ip->saddr), 0);
	pseudo += (__u64)ip->payload_len + bpf_htons(IPPROTO_ICMPV6);
	icmp->icmp6_cksum = ~fold(pseudo + bpf_csum_diff(NULL, 0, (void *)icmp, sizeof(*icmp) + QUOTED_OF_IPV6, 0));
	return XDP_TX;
}
#endif

static __always_inline int answer_too_big(struct xdp_md *ctx, const struct packet *packet, int family)
{
	note_reason(packet, REASON_TOO_BIG);
#ifdef TOO_BIG
	count_family(STATS_TOO_BIG, family);
	sample_event(ctx, EVENT_TOO_BIG);
	return family == AF_INET ? tell_mtu_v4(ctx, packet) : tell_mtu_v6(ctx, packet);
#else
	/* Katran does not count these in its own slot, which is that of answers. */
	count(ACCEL_TOO_BIG);
	return XDP_DROP;
#endif
}
