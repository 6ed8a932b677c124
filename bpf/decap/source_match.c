// SPDX-License-Identifier: GPL-2.0-only
/*
 * At the TC ingress of a real that takes GUE by its own stack: the TCP packet inside gets the source address of the
 * outer header, for balancers that put the client's address there. IPv6 in IPv6 alone, as published. The outer UDP
 * checksum is left as it is. Build choice: GUE_PORT.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "lib/checksum.h"
#include "lib/map_handle.h"

enum source_match_counter { PACKETS_SEEN, PACKETS_NEED_PULL, PACKETS_ACTED };

/* All headers, one after the other. */
struct tcp_in_gue {
	struct ethhdr eth;
	struct ipv6hdr outer;
	struct udphdr udp;
	struct ipv6hdr inner;
	struct tcphdr tcp;
} __attribute__((packed));

static __always_inline void count_packet(enum source_match_counter which)
{
	__u32 slot = which;
	__u64 *counter = bpf_map_lookup_elem(MAP(tc_srcmatch_map), &slot);

	if (counter)
		*counter += 1;
}

/* The headers when all of them lie in the linear part, which is made longer if it must be. */
static __always_inline struct tcp_in_gue *linear_headers(struct __sk_buff *skb)
{
	struct tcp_in_gue *headers = (void *)(long)skb->data;

	if ((void *)(headers + 1) <= (void *)(long)skb->data_end)
		return headers;
	count_packet(PACKETS_NEED_PULL);
	if (bpf_skb_pull_data(skb, sizeof(*headers)))
		return NULL;
	headers = (void *)(long)skb->data;
	return (void *)(headers + 1) <= (void *)(long)skb->data_end ? headers : NULL;
}

int source_match(struct __sk_buff *skb)
{
	struct tcp_in_gue *headers;
	__u32 sum;

	count_packet(PACKETS_SEEN);
	headers = linear_headers(skb);
	if (!headers || headers->eth.h_proto != bpf_htons(ETH_P_IPV6) || headers->outer.nexthdr != IPPROTO_UDP ||
	    headers->udp.dest != bpf_htons(GUE_PORT) || headers->inner.version != 6 ||
	    headers->inner.nexthdr != IPPROTO_TCP)
		return TC_ACT_PIPE;
	count_packet(PACKETS_ACTED);
	/* Less the old address, more the new one. */
	sum = bpf_csum_diff((void *)&headers->inner.saddr, sizeof(headers->inner.saddr), (void *)&headers->outer.saddr,
			    sizeof(headers->outer.saddr), (__u16)~headers->tcp.check);
	headers->tcp.check = ~fold(sum);
	headers->inner.saddr = headers->outer.saddr;
	return TC_ACT_PIPE;
}
