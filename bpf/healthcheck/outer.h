/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The outer header of a probe, IPIP or (built with GUE_PORT) GUE variant 1: v4 and v6 in each other, with the EtherType
 * of the outer packet. TOS 0, TTL 64; GUE without UDP checksum, as published.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "abi.h"
#include "lib/ipv4_checksum.h"
#include "lib/map_handle.h"

#define HC_TTL 64
#define HC_LOWEST_SOURCE_PORT 0x0400

#ifdef GUE_PORT
#define OUTER_UDP_BYTES sizeof(struct udphdr)
#define OUTER_UDP_FLAG BPF_F_ADJ_ROOM_ENCAP_L4_UDP
#else
#define OUTER_UDP_BYTES 0
#define OUTER_UDP_FLAG 0
#endif

/* `udp` is written with GUE only. */
struct outer_ipv4 {
	struct iphdr ip;
	struct udphdr udp;
};

struct outer_ipv6 {
	struct ipv6hdr ip;
	struct udphdr udp;
};

/* Makes room behind the Ethernet header and tells the kernel what goes there, for checksums and segmentation. */
static __always_inline int make_room(struct __sk_buff *skb, __u32 bytes, __u64 family_flag)
{
	return !bpf_skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_MAC,
				    family_flag | OUTER_UDP_FLAG | BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* Writes the EtherType, and the addresses, unless the kernel finds these itself when the packet is redirected. */
static __always_inline int write_ethernet(struct __sk_buff *skb, __be16 protocol)
{
#ifdef KERNEL_NEXT_HOP
	return !bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &protocol, sizeof(protocol), 0);
#else
	__u32 source = HC_MAC_SOURCE, destination = HC_MAC_DESTINATION;
	struct hc_mac *from = bpf_map_lookup_elem(MAP(hc_pckt_macs), &source);
	struct hc_mac *to = bpf_map_lookup_elem(MAP(hc_pckt_macs), &destination);
	struct ethhdr eth;

	if (!from || !to)
		return 0;
	__builtin_memcpy(eth.h_source, from->mac, ETH_ALEN);
	__builtin_memcpy(eth.h_dest, to->mac, ETH_ALEN);
	eth.h_proto = protocol;
	return !bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0);
#endif
}

#ifdef KERNEL_NEXT_HOP
/* bcc's own declaration has an argument too few. */
static long (*redirect_neigh)(__u32 ifindex, void *params, int bytes, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;
#endif

static __always_inline int send(__u32 interface)
{
#ifdef KERNEL_NEXT_HOP
	return redirect_neigh(interface, NULL, 0, 0);
#else
	return bpf_redirect(interface, 0);
#endif
}

/* The protocol by which an inner packet of this EtherType is announced. */
static __always_inline __u8 outer_protocol(__be16 inner)
{
	if (OUTER_UDP_BYTES)
		return IPPROTO_UDP;
	return inner == bpf_htons(ETH_P_IP) ? IPPROTO_IPIP : IPPROTO_IPV6;
}

static __always_inline void fill_udp(struct udphdr *udp, __u32 inner_bytes)
{
#ifdef GUE_PORT
	udp->source = bpf_htons((bpf_get_prandom_u32() & 0xffff) | HC_LOWEST_SOURCE_PORT);
	udp->dest = bpf_htons(GUE_PORT);
	udp->len = bpf_htons(inner_bytes + sizeof(*udp));
#endif
}

static __always_inline int encap_in_ipv4(struct __sk_buff *skb, const struct hc_address *real)
{
	const __u32 bytes = sizeof(struct iphdr) + OUTER_UDP_BYTES;
	__u32 slot = HC_SOURCE_IPV4, inner_bytes = skb->len - ETH_HLEN;
	struct hc_address *source = bpf_map_lookup_elem(MAP(hc_pckt_srcs_map), &slot);
	struct outer_ipv4 outer = {};
	__be16 inner = skb->protocol;

	if (!source || !make_room(skb, bytes, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return 0;
	*(__u8 *)&outer.ip = 0x45;
	outer.ip.tot_len = bpf_htons(inner_bytes + bytes);
	outer.ip.ttl = HC_TTL;
	outer.ip.protocol = outer_protocol(inner);
	outer.ip.saddr = source->addr[0];
	outer.ip.daddr = real->addr[0];
	outer.ip.check = ipv4_checksum(&outer.ip);
	fill_udp(&outer.udp, inner_bytes);
	return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer, bytes, 0) && write_ethernet(skb, bpf_htons(ETH_P_IP));
}

static __always_inline int encap_in_ipv6(struct __sk_buff *skb, const struct hc_address *real)
{
	const __u32 bytes = sizeof(struct ipv6hdr) + OUTER_UDP_BYTES;
	__u32 slot = HC_SOURCE_IPV6, inner_bytes = skb->len - ETH_HLEN;
	struct hc_address *source = bpf_map_lookup_elem(MAP(hc_pckt_srcs_map), &slot);
	struct outer_ipv6 outer = {};
	__be16 inner = skb->protocol;

	if (!source || !make_room(skb, bytes, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return 0;
	*(__u8 *)&outer.ip = 0x60;
	outer.ip.payload_len = bpf_htons(inner_bytes + OUTER_UDP_BYTES);
	outer.ip.nexthdr = outer_protocol(inner);
	outer.ip.hop_limit = HC_TTL;
	__builtin_memcpy(&outer.ip.saddr, source->addr, sizeof(outer.ip.saddr));
	__builtin_memcpy(&outer.ip.daddr, real->addr, sizeof(outer.ip.daddr));
	fill_udp(&outer.udp, inner_bytes);
	return !bpf_skb_store_bytes(skb, ETH_HLEN, &outer, bytes, 0) && write_ethernet(skb, bpf_htons(ETH_P_IPV6));
}
