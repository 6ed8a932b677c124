/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP: echo requests to a VIP are answered here, as the stack of no host would; an error goes to the real of the flow
 * that it quotes. Without that, path MTU discovery does not work behind a VIP.
 */
#pragma once

#include <linux/icmp.h>
#include <linux/icmpv6.h>

#include "lib/ipv4_checksum.h"
#include "lib/packet.h"
#include "counters.h"
#include "ethernet.h"
#include "katran_abi.h"
#include "vip.h"

#define OUR_TTL 64
#define SMALLEST_IPV6_MTU 1280
/* Bytes behind the quoted IP header that every error has: RFC 792. They have the ports. */
#define QUOTED_BYTES 8

enum icmp_result {
	ICMP_NOT_OURS,
	ICMP_MALFORMED,
	ICMP_ANSWER,
	ICMP_QUOTES_FLOW, /* which is in the packet now */
};

#ifdef ICMP
/* Whether the packet is for an address of a VIP: it has no port that would tell more. */
static __always_inline int is_for_vip(const struct packet *packet, int family)
{
	return vip_of_address(packet, IPPROTO_TCP, family) || vip_of_address(packet, IPPROTO_UDP, family);
}

static __always_inline void count_told_mtu(__u32 slot, __u32 mtu)
{
	count_v1(slot);
	if (mtu < SMALLEST_IPV6_MTU)
		count_v2(slot);
}

/* Reads ports and TCP flags of the quoted packet at `l4`. The packet went to the client: the ends change places. */
static __always_inline enum icmp_result read_quoted_l4(struct packet *packet, void *l4, void *data_end)
{
	if (!has_ports(packet->flow.proto))
		return ICMP_NOT_OURS;
	if (l4 + QUOTED_BYTES > data_end)
		return ICMP_MALFORMED;
	packet->flow.dport = *(__be16 *)l4;
	packet->flow.sport = *(__be16 *)(l4 + 2);
	packet->tcp_flags = 0;
	if (packet->flow.proto == IPPROTO_TCP && l4 + TCP_FLAGS_BYTE + 1 <= data_end)
		packet->tcp_flags = ((__u8 *)l4)[TCP_FLAGS_BYTE] & (TCP_FLAG_SYN | TCP_FLAG_RST);
	packet->is_error = 1;
	return ICMP_QUOTES_FLOW;
}

static __always_inline enum icmp_result read_icmpv4(struct packet *packet, void *data, void *data_end)
{
	struct icmphdr *icmp = data + l4_at(packet, AF_INET);
	struct iphdr *quoted = (void *)(icmp + 1);
	__u32 header;

	if ((void *)(icmp + 1) > data_end)
		return ICMP_MALFORMED;
	if (icmp->type == ICMP_ECHO)
		return ICMP_ANSWER;
	if (icmp->type != ICMP_DEST_UNREACH)
		return ICMP_NOT_OURS;
	if (icmp->code == ICMP_FRAG_NEEDED)
		count_told_mtu(STATS_ICMP_TOO_BIG_V4, bpf_ntohs(icmp->un.frag.mtu));
	packet->icmp_code = icmp->code;
	if ((void *)(quoted + 1) > data_end)
		return ICMP_MALFORMED;
	header = quoted->ihl * 4;
	if (header < sizeof(*quoted))
		return ICMP_MALFORMED;
	packet->flow.proto = quoted->protocol;
	packet->flow.dst[0] = quoted->saddr;
	packet->flow.src[0] = quoted->daddr;
	return read_quoted_l4(packet, (void *)quoted + header, data_end);
}

static __always_inline enum icmp_result read_icmpv6(struct packet *packet, void *data, void *data_end)
{
	struct icmp6hdr *icmp = data + l4_at(packet, AF_INET6);
	struct ipv6hdr *quoted = (void *)(icmp + 1);

	if ((void *)(icmp + 1) > data_end)
		return ICMP_MALFORMED;
	if (icmp->icmp6_type == ICMPV6_ECHO_REQUEST)
		return ICMP_ANSWER;
	if (icmp->icmp6_type != ICMPV6_PKT_TOOBIG && icmp->icmp6_type != ICMPV6_DEST_UNREACH)
		return ICMP_NOT_OURS;
	if (icmp->icmp6_type == ICMPV6_PKT_TOOBIG)
		count_told_mtu(STATS_ICMP_TOO_BIG_V6, bpf_ntohl(icmp->icmp6_mtu));
	packet->icmp_code = icmp->icmp6_code;
	if ((void *)(quoted + 1) > data_end)
		return ICMP_MALFORMED;
	packet->flow.proto = quoted->nexthdr;
	__builtin_memcpy(packet->flow.dst, &quoted->saddr, sizeof(packet->flow.dst));
	__builtin_memcpy(packet->flow.src, &quoted->daddr, sizeof(packet->flow.src));
	return read_quoted_l4(packet, quoted + 1, data_end);
}

/* Reads an ICMP packet. What is not for a VIP is the stack's. */
static __always_inline enum icmp_result read_icmp(struct packet *packet, void *data, void *data_end, int family)
{
	struct packet outer = *packet;
	enum icmp_result result =
		family == AF_INET ? read_icmpv4(packet, data, data_end) : read_icmpv6(packet, data, data_end);

	if (result == ICMP_NOT_OURS || result == ICMP_QUOTES_FLOW || is_for_vip(&outer, family))
		return result;
	return ICMP_NOT_OURS;
}

/* Makes the reply of an echo request, in place. One word of what the ICMP checksum is made of changes: the type's. */
static __always_inline int answer_echo_v4(struct xdp_md *ctx, const struct packet *packet)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ip_at(packet);
	struct icmphdr *icmp = (void *)(ip + 1);
	__be32 client;
	__u32 sum;

	if ((void *)(icmp + 1) > data_end || data + sizeof(struct ethhdr) > data_end)
		return XDP_DROP;
	swap_macs(data);
	client = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = client;
	ip->ttl = OUR_TTL;
	ip->check = 0;
	ip->check = ipv4_checksum(ip);
	sum = bpf_ntohs(icmp->checksum) + (ICMP_ECHO << 8);
	icmp->checksum = bpf_htons((sum & 0xffff) + (sum >> 16));
	icmp->type = ICMP_ECHOREPLY;
	return XDP_TX;
}

static __always_inline int answer_echo_v6(struct xdp_md *ctx, const struct packet *packet)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + ip_at(packet);
	struct icmp6hdr *icmp = (void *)(ip + 1);
	struct in6_addr client;
	__s32 sum;

	if ((void *)(icmp + 1) > data_end || data + sizeof(struct ethhdr) > data_end)
		return XDP_DROP;
	swap_macs(data);
	client = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = client;
	ip->hop_limit = OUR_TTL;
	sum = bpf_ntohs(icmp->icmp6_cksum) - ((ICMPV6_ECHO_REPLY - ICMPV6_ECHO_REQUEST) << 8);
	icmp->icmp6_cksum = bpf_htons(sum < 0 ? sum - 1 : sum);
	icmp->icmp6_type = ICMPV6_ECHO_REPLY;
	return XDP_TX;
}

static __always_inline int answer_echo(struct xdp_md *ctx, const struct packet *packet, int family)
{
	return family == AF_INET ? answer_echo_v4(ctx, packet) : answer_echo_v6(ctx, packet);
}
#endif
