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

/* To 02:00:5e:00:00:01 from 02:00:5e:00:00:02. Written as words: the compiler takes struct ethhdr for unaligned. */
static __always_inline void write_ethernet(void *data, __be16 protocol)
{
	__u32 *words = data;

	words[0] = bpf_htonl(0x02005e00);
	words[1] = bpf_htonl(0x00010200);
	words[2] = bpf_htonl(0x5e000002);
	*(__be16 *)(words + 3) = protocol;
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
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);

	write_ethernet(data, bpf_htons(ETH_P_IPV6));
	ip->saddr.in6_u.u6_addr32[3] = source_of(flow, 0);
	ip->daddr.in6_u.u6_addr32[0] = service->addr[0];
	ip->daddr.in6_u.u6_addr32[1] = service->addr[1];
	ip->daddr.in6_u.u6_addr32[2] = service->addr[2];
	ip->daddr.in6_u.u6_addr32[3] = service->addr[3];
#else
	struct iphdr *ip = data + sizeof(struct ethhdr);

	write_ethernet(data, bpf_htons(ETH_P_IP));
	ip->saddr = source_of(flow, SOURCE_V4);
	ip->daddr = service->addr[0];
#endif
	write_ports(ip + 1, flow, service);
	return 0;
}
