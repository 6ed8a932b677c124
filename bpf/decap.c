// SPDX-License-Identifier: GPL-2.0-only
/*
 * For a real whose kernel has no tunnel driver: removes the balancer's outer header and passes the inner packet to the
 * stack. Frames without the balancer's outer source pass unchanged.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "balancer/outer_header.h"

/* Bytes of the outer header, 0 when it is not the balancer's. Sets `inner` to the EtherType of the inner packet. */
static __always_inline int outer_bytes(void *data, void *data_end, __be16 *inner)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct ipv6hdr *ip6 = data + sizeof(*eth);

	if ((void *)(ip + 1) > data_end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		*inner = bpf_htons(ETH_P_IP);
		if (ip->protocol != IPPROTO_IPIP || ip->ihl != 5)
			return 0;
		return (ip->saddr & bpf_htonl(OUTER_V4_MASK)) == bpf_htonl(OUTER_V4_SOURCE) ? sizeof(*ip) : 0;
	}
	if (eth->h_proto != bpf_htons(ETH_P_IPV6) || (void *)(ip6 + 1) > data_end)
		return 0;
	if (ip6->saddr.in6_u.u6_addr32[0] != bpf_htonl(OUTER_V6_SOURCE) || ip6->saddr.in6_u.u6_addr32[1])
		return 0;
	*inner = ip6->nexthdr == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return ip6->nexthdr == IPPROTO_IPIP || ip6->nexthdr == IPPROTO_IPV6 ? sizeof(*ip6) : 0;
}

int decap(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr link, *eth;
	__be16 inner = 0;
	int outer = outer_bytes(data, data_end, &inner);

	if (!outer)
		return XDP_PASS;
	__builtin_memcpy(&link, data, sizeof(link));
	link.h_proto = inner;
	if (bpf_xdp_adjust_head(ctx, outer))
		return XDP_DROP;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	*eth = link;
	return XDP_PASS;
}
