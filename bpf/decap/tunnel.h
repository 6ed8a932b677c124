/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The outer header of a frame: IPIP (any of v4 and v6 in any), and GUE variant 1 when built with GUE_PORT, where the
 * inner packet follows the UDP header at once.
 *
 * A packet is judged only when it is a tunnel's, and goes to one of the destinations: all others are the stack's, also
 * fragments and packets with IP options. DROP_ALL_FRAGMENTS judges these before, as Katran's program does.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "lib/packet.h"
#include "destination.h"

#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */
#define IPV6_LATER_FRAGMENT 0xfff8

enum tunnel_state {
	TUNNEL_NONE,
	TUNNEL_OPEN, /* can be removed */
	/* It cannot be removed, because … */
	TUNNEL_FRAGMENT, /* … this is a part of the outer packet, */
	TUNNEL_OPTIONS, /* … the outer header has IP options, */
	TUNNEL_MALFORMED, /* … no whole IP header of the promised version is in it */
};

struct tunnel {
	__u32 bytes; /* of the outer headers, behind Ethernet */
	__be16 inner; /* EtherType of the packet inside */
	__u8 outer_is_v6;
};

struct fragment_header {
	__u8 nexthdr;
	__u8 reserved;
	__be16 frag_off;
	__be32 identification;
};

static __always_inline int is_ipip(__u8 protocol)
{
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6;
}

/* Whether the UDP header at `l4` is for the GUE port; 0 when it is truncated. */
static __always_inline int is_gue(void *l4, void *data_end)
{
#ifdef GUE_PORT
	struct udphdr *udp = l4;

	return (void *)(udp + 1) <= data_end && udp->dest == bpf_htons(GUE_PORT);
#else
	return 0;
#endif
}

/* Checks that an IP header of `version` begins at `inner`. */
static __always_inline enum tunnel_state check_inner(struct tunnel *tunnel, void *inner, void *data_end, __u8 version)
{
	__u32 bytes = version == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (inner + bytes > data_end || *(__u8 *)inner >> 4 != version)
		return TUNNEL_MALFORMED;
	tunnel->inner = version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return TUNNEL_OPEN;
}

static __always_inline enum tunnel_state open_ipip(struct tunnel *tunnel, void *inner, void *data_end, __u8 protocol)
{
	return check_inner(tunnel, inner, data_end, protocol == IPPROTO_IPIP ? 4 : 6);
}

/* Variant 1 is told by its first two bits, 01, as both IP versions have them. The other variants are the stack's. */
static __always_inline enum tunnel_state open_gue(struct tunnel *tunnel, void *udp, void *data_end)
{
	__u8 *inner = udp + sizeof(struct udphdr);

	if ((void *)(inner + 1) > data_end)
		return TUNNEL_NONE;
	tunnel->bytes += sizeof(struct udphdr);
	if (*inner >> 4 == 4)
		return check_inner(tunnel, inner, data_end, 4);
	return *inner >> 4 == 6 ? check_inner(tunnel, inner, data_end, 6) : TUNNEL_NONE;
}

static __always_inline enum tunnel_state read_outer_ipv4(struct tunnel *tunnel, void *data, void *data_end)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);
	__u16 fragment;

	if ((void *)(ip + 1) > data_end)
		return TUNNEL_NONE;
	fragment = bpf_ntohs(ip->frag_off);
#ifdef DROP_ALL_FRAGMENTS
	if (ip->ihl != 5)
		return TUNNEL_OPTIONS;
	if (fragment & IPV4_FRAGMENT)
		return TUNNEL_FRAGMENT;
#endif
	if (!is_ipip(ip->protocol)) {
		/* Only the first fragment has ports. */
		if (ip->protocol != IPPROTO_UDP || fragment & IPV4_FRAGMENT_OFFSET)
			return TUNNEL_NONE;
		if (!is_gue((void *)ip + ip->ihl * 4, data_end))
			return TUNNEL_NONE;
	}
	if (!is_ipv4_destination(ip->daddr))
		return TUNNEL_NONE;
	if (ip->ihl != 5)
		return TUNNEL_OPTIONS;
	if (fragment & IPV4_FRAGMENT)
		return TUNNEL_FRAGMENT;
	tunnel->bytes = sizeof(*ip);
	if (ip->protocol == IPPROTO_UDP)
		return open_gue(tunnel, ip + 1, data_end);
	return open_ipip(tunnel, ip + 1, data_end, ip->protocol);
}

/* A packet with a fragment header: whether it is a part of a tunnel's packet. */
static __always_inline enum tunnel_state read_ipv6_fragment(struct ipv6hdr *ip, void *data_end)
{
	struct fragment_header *fragment = (void *)(ip + 1);

#ifdef DROP_ALL_FRAGMENTS
	return TUNNEL_FRAGMENT;
#endif
	if ((void *)(fragment + 1) > data_end)
		return TUNNEL_NONE;
	if (!is_ipip(fragment->nexthdr)) {
		if (fragment->nexthdr != IPPROTO_UDP || fragment->frag_off & bpf_htons(IPV6_LATER_FRAGMENT))
			return TUNNEL_NONE;
		if (!is_gue(fragment + 1, data_end))
			return TUNNEL_NONE;
	}
	return is_ipv6_destination(&ip->daddr) ? TUNNEL_FRAGMENT : TUNNEL_NONE;
}

static __always_inline enum tunnel_state read_outer_ipv6(struct tunnel *tunnel, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);

	if ((void *)(ip + 1) > data_end)
		return TUNNEL_NONE;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return read_ipv6_fragment(ip, data_end);
	if (!is_ipip(ip->nexthdr) && (ip->nexthdr != IPPROTO_UDP || !is_gue(ip + 1, data_end)))
		return TUNNEL_NONE;
	if (!is_ipv6_destination(&ip->daddr))
		return TUNNEL_NONE;
	tunnel->bytes = sizeof(*ip);
	tunnel->outer_is_v6 = 1;
	if (ip->nexthdr == IPPROTO_UDP)
		return open_gue(tunnel, ip + 1, data_end);
	return open_ipip(tunnel, ip + 1, data_end, ip->nexthdr);
}

static __always_inline enum tunnel_state read_tunnel(struct tunnel *tunnel, void *data, void *data_end)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return TUNNEL_NONE;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return read_outer_ipv4(tunnel, data, data_end);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return read_outer_ipv6(tunnel, data, data_end);
	return TUNNEL_NONE;
}
