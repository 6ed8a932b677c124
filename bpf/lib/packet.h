/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads the fixed headers of a frame, once: Ethernet without VLAN, IPv4 without options or IPv6 without extension
 * headers, then TCP or UDP.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include "flow_key.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
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
#ifdef CAPTURE
	struct {
		__u32 reason;
		__u32 vip;
		__u32 real;
	} note; /* what becomes of it, for balancer/capture.h: not read from the packet */
#endif
};

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
		return PARSE_OTHER;
	}
	packet->flow.sport = *(__be16 *)l4;
	packet->flow.dport = *(__be16 *)(l4 + 2);
	return PARSE_OK;
}

static __always_inline enum parse_result read_ipv4(struct packet *packet, void *data, void *data_end)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if ((void *)(ip + 1) > data_end)
		return PARSE_NO_ADDRESSES;
	packet->flow.src[0] = ip->saddr;
	packet->flow.dst[0] = ip->daddr;
	packet->flow.proto = ip->protocol;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	/* The first fragment has ports, but the others have none, and all must be treated alike. */
	if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET))
		return has_ports(packet->flow.proto) ? PARSE_NO_PORTS : PARSE_OTHER;
	if (ip->ihl != 5)
		return read_ports_only(packet, (void *)ip + ip->ihl * 4, data_end);
	return read_l4(packet, ip + 1, data_end);
}

static __always_inline enum parse_result read_ipv6(struct packet *packet, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);

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
		return *next == IPPROTO_ICMPV6 ? PARSE_OTHER : PARSE_NO_PORTS;
	}
	return read_l4(packet, ip + 1, data_end);
}
