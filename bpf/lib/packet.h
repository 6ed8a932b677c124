/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads the fixed headers of a frame, once: Ethernet, IPv4 without options or IPv6 without extension headers, then TCP
 * or UDP. Built with VLAN: one or two tags, too. Built with OTHER_PROTOCOLS: whole packets of other protocols are told
 * from fragments and from packets with options.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include "flow_key.h"
#include "vlan.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_FRAGMENT_BYTES 8
#define PORTS_BYTES 4
#define TCP_HEADER_BYTES 20
#define UDP_HEADER_BYTES 8
#define TCP_FLAGS_BYTE 13
#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04

/* Result of reading the headers. */
enum parse_result {
	PARSE_OK,
	PARSE_OTHER, /* neither TCP nor UDP */
	PARSE_OTHER_WHOLE, /* the same, with OTHER_PROTOCOLS: neither a fragment nor with IP options */
	PARSE_UNFIT, /* IP options, or it ends within the TCP or UDP header; addresses and ports are read */
	PARSE_NO_PORTS, /* a fragment, or it ends before the ports; addresses and protocol are read */
	PARSE_NO_ADDRESSES, /* it ends within the IP header */
};

struct packet {
	struct flow_key flow; /* as the packet carries it */
	__u32 frame_bytes;
	__u16 ip_bytes; /* v4: total length, v6: payload length; host order */
	__u8 tos; /* v4 TOS or v6 traffic class */
	__u8 tcp_flags; /* 0 for UDP */
#ifdef VLAN
	__u16 vlans[MAX_VLAN_TAGS]; /* the outer tag first, in the form of vlan_of(); 0: none */
	__u8 tag_bytes; /* of both tags: 0, 4 or 8 */
#endif
#ifdef HASH_FRAGMENTS
	__u8 is_fragment; /* it has no ports */
#endif
#ifdef ICMP
	__u8 is_error; /* an ICMP error: `flow` and `tcp_flags` are of the packet that it quotes, the way back */
	__u8 icmp_code;
#endif
#ifdef CAPTURE
	struct {
		__u32 reason;
		__u32 vip;
		__u32 real;
	} note; /* what becomes of it, for balancer/capture.h: not read from the packet */
#endif
};

/* Reads the EtherType of what the frame has, behind VLAN tags if the program is built for them; false: it is cut. */
static __always_inline int read_ethertype(struct packet *packet, struct ethhdr *eth, void *data_end, __be16 *ethertype)
{
#ifdef VLAN
	void *data = eth;

	if (!read_vlan_tags(packet->vlans, &data, data_end, ethertype))
		return 0;
	packet->tag_bytes = data - (void *)eth;
#else
	*ethertype = eth->h_proto;
#endif
	return 1;
}

/* Offset of the IP header. */
static __always_inline int ip_at(const struct packet *packet)
{
#ifdef VLAN
	return sizeof(struct ethhdr) + (packet->tag_bytes & VLAN_BYTES_MASK);
#else
	return sizeof(struct ethhdr);
#endif
}

/* Offset of what follows the IP header of a packet without options. `family` is a constant in every call. */
static __always_inline int l4_at(const struct packet *packet, int family)
{
	return ip_at(packet) + (family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
}

static __always_inline int is_fragment(const struct packet *packet)
{
#ifdef HASH_FRAGMENTS
	return packet->is_fragment;
#else
	return 0;
#endif
}

/* Whether the flow is that of a quoted packet. */
static __always_inline int is_error(const struct packet *packet)
{
#ifdef ICMP
	return packet->is_error;
#else
	return 0;
#endif
}

static __always_inline int is_syn(const struct packet *packet)
{
	return packet->tcp_flags & TCP_FLAG_SYN;
}

static __always_inline int is_rst(const struct packet *packet)
{
	return packet->tcp_flags & TCP_FLAG_RST;
}

/* First or last packet of a connection: the connection's state changes, so it takes the slow path. */
static __always_inline int is_tcp_edge(const struct packet *packet)
{
	return packet->tcp_flags & (TCP_FLAG_FIN | TCP_FLAG_SYN | TCP_FLAG_RST);
}

/* The end of a connection. */
static __always_inline int closes(const struct packet *packet)
{
	return is_tcp_edge(packet) && !is_syn(packet);
}

static __always_inline int has_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/* Reads the ports at `l4` of a packet that cannot be balanced. */
static __always_inline enum parse_result read_ports_only(struct packet *packet, void *l4, void *data_end)
{
	if (!has_ports(packet->flow.proto))
		return PARSE_OTHER;
	/* The compiler must not compute it anew: the verifier knows the bounds of the pointer that is compared. */
	asm volatile("" : "+r"(l4));
	if (l4 + PORTS_BYTES > data_end)
		return PARSE_NO_PORTS;
	packet->flow.sport = *(__be16 *)l4;
	packet->flow.dport = *(__be16 *)(l4 + 2);
	return PARSE_UNFIT;
}

/* Reads ports and TCP flags at `l4`. */
static __always_inline enum parse_result read_l4(struct packet *packet, void *l4, void *data_end)
{
	__u8 *bytes = l4;

	if (packet->flow.proto == IPPROTO_TCP) {
		if (l4 + TCP_HEADER_BYTES > data_end)
			return read_ports_only(packet, l4, data_end);
		packet->tcp_flags = bytes[TCP_FLAGS_BYTE];
	} else if (packet->flow.proto == IPPROTO_UDP) {
		if (l4 + UDP_HEADER_BYTES > data_end)
			return read_ports_only(packet, l4, data_end);
		packet->tcp_flags = 0;
	} else {
#ifdef OTHER_PROTOCOLS
		return PARSE_OTHER_WHOLE;
#else
		return PARSE_OTHER;
#endif
	}
	packet->flow.sport = *(__be16 *)l4;
	packet->flow.dport = *(__be16 *)(l4 + 2);
	return PARSE_OK;
}

static __always_inline enum parse_result read_ipv4(struct packet *packet, void *data, void *data_end)
{
	struct iphdr *ip = data + ip_at(packet);

	if ((void *)(ip + 1) > data_end)
		return PARSE_NO_ADDRESSES;
	packet->flow.src[0] = ip->saddr;
	packet->flow.dst[0] = ip->daddr;
	packet->flow.proto = ip->protocol;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	/* The first fragment has ports, but the others have none, and all must be treated alike. */
	if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)) {
#ifdef HASH_FRAGMENTS
		packet->is_fragment = ip->ihl == 5;
#endif
		return has_ports(packet->flow.proto) ? PARSE_NO_PORTS : PARSE_OTHER;
	}
	if (ip->ihl != 5)
		return read_ports_only(packet, (void *)ip + ip->ihl * 4, data_end);
	return read_l4(packet, ip + 1, data_end);
}

static __always_inline enum parse_result read_ipv6(struct packet *packet, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + ip_at(packet);

	__u8 *next = (void *)(ip + 1);

	if ((void *)(ip + 1) > data_end)
		return PARSE_NO_ADDRESSES;
	__builtin_memcpy(packet->flow.src, &ip->saddr, sizeof(packet->flow.src));
	__builtin_memcpy(packet->flow.dst, &ip->daddr, sizeof(packet->flow.dst));
	packet->flow.proto = ip->nexthdr;
	packet->ip_bytes = bpf_ntohs(ip->payload_len);
	packet->tos = (ip->priority << 4) | (ip->flow_lbl[0] >> 4);
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		if ((void *)(next + 1) > data_end)
			return PARSE_NO_PORTS;
		packet->flow.proto = *next;
#ifdef HASH_FRAGMENTS
		packet->is_fragment = 1;
#endif
		return *next == IPPROTO_ICMPV6 ? PARSE_OTHER : PARSE_NO_PORTS;
	}
	return read_l4(packet, ip + 1, data_end);
}
