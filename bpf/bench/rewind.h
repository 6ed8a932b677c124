/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Makes the frame of the last repetition a packet of the next flow, since the kernel does not restore it: removes the
 * outer header, and writes what differs between flows or was overwritten. The other header fields stay as user space
 * set them.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "numbered_flow.h"

/* Removes what the program under test has put in front of the frame. */
static __always_inline int rewind_frame(struct xdp_md *ctx)
{
	int surplus = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;

	return surplus ? bpf_xdp_adjust_head(ctx, surplus) : 0;
}

#ifdef FLOW_AT
/* What the frame has between the MAC addresses and the flow's IP header: tags, or a tunnel's header. */
struct bench_prefix {
	__u16 words[32];
};
#else
#define FLOW_AT sizeof(struct ethhdr)
#define PREFIX_IS_ETHERTYPE
#endif

/* To 02:00:5e:00:00:01 from 02:00:5e:00:00:02. Written as words: the compiler takes struct ethhdr for unaligned. */
static __always_inline int write_prefix(void *data, __be16 protocol)
{
	__u32 *words = data;
	__u16 *behind = data + 2 * ETH_ALEN;

	words[0] = bpf_htonl(0x02005e00);
	words[1] = bpf_htonl(0x00010200);
	words[2] = bpf_htonl(0x5e000002);
#ifdef PREFIX_IS_ETHERTYPE
	*behind = protocol;
#else
	__u32 slot = 0;
	struct bench_prefix *prefix = bpf_map_lookup_elem(MAP(bench_prefix), &slot);

	if (!prefix)
		return -1;
#pragma unroll
	for (int i = 0; i < (FLOW_AT - 2 * ETH_ALEN) / 2; i++)
		behind[i] = prefix->words[i];
#endif
	return 0;
}

static __always_inline void write_ports(void *l4, __u32 flow, const struct bench_service *service)
{
	((__be16 *)l4)[0] = source_port_of(flow);
	((__be16 *)l4)[1] = service->port;
}

static __always_inline int write_flow(struct xdp_md *ctx, __u32 flow)
{
	void *data = (void *)(long)ctx->data;
	struct bench_service *service = service_of(flow);

	if (data + FRAME_BYTES > (void *)(long)ctx->data_end || !service)
		return -1;
#ifdef IPV6
	struct ipv6hdr *ip = data + FLOW_AT;

	if (write_prefix(data, bpf_htons(ETH_P_IPV6)))
		return -1;
#ifndef PREFIX_IS_ETHERTYPE
	ip->hop_limit = 64; /* the end of a tunnel takes it down */
#endif
	ip->saddr.in6_u.u6_addr32[3] = source_of(flow, 0);
	ip->daddr.in6_u.u6_addr32[0] = service->addr[0];
	ip->daddr.in6_u.u6_addr32[1] = service->addr[1];
	ip->daddr.in6_u.u6_addr32[2] = service->addr[2];
	ip->daddr.in6_u.u6_addr32[3] = service->addr[3];
#else
	struct iphdr *ip = data + FLOW_AT;

	if (write_prefix(data, bpf_htons(ETH_P_IP)))
		return -1;
#ifndef PREFIX_IS_ETHERTYPE
	ip->ttl = 64; /* the end of a tunnel takes it down */
#endif
	ip->saddr = source_of(flow, SOURCE_V4);
	ip->daddr = service->addr[0];
#endif
	write_ports(ip + 1, flow, service);
	return 0;
}
