/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a Katran control plane and this data plane agree on: layouts, flags and numbers of the shared maps.
 * Addresses and ports are in network byte order; an IPv4 address fills the first word, the rest is zero.
 * The numpy side of every struct is plugins/katran_accel/layouts.py; a test compares the two.
 */
#pragma once

#include <linux/types.h>

#include "lib/flow_key.h"

#define RING_SLOTS 65537u
#ifndef MTU
#define MTU 1500 /* bytes of the longest IP packet that is balanced, without the outer header */
#endif
#define STATS_VIPS 512u
#define UDP_IDLE_LIMIT_NS 30000000000ull
#define NEW_FLOW_WINDOW_NS 1000000000ull
#ifndef NEW_FLOWS_PER_WINDOW
#define NEW_FLOWS_PER_WINDOW 125000u
#endif

/* Seed of the flow hash, also the size of Katran's full ch_rings. */
#define FLOW_HASH_SEED 33554944u
#define FLOW_HASH_SEED_V6 512u

enum vip_flag {
	VIP_HASH_NO_SRC_PORT = 1u << 0,
	VIP_LRU_BYPASS = 1u << 1,
	VIP_QUIC = 1u << 2,
	VIP_HASH_DPORT_ONLY = 1u << 3,
	VIP_SOURCE_ROUTING = 1u << 4,
	VIP_LOCAL = 1u << 5,
	VIP_GLOBAL_LRU = 1u << 6,
	VIP_HASH_SRC_DST_PORT = 1u << 7,
	VIP_UDP_STABLE_ROUTING = 1u << 8,
	VIP_UDP_FLOW_MIGRATION = 1u << 9,
	/* nfcore's own, Katran never sets them: the keys of both families look alike. Neither: packets of both. */
	VIP_ONLY_IPV4 = 1u << 30,
	VIP_ONLY_IPV6 = 1u << 31,
};

/* Also nfcore's own, of a prefix VIP: length of the longest prefix of the other family that has its bits, and one. */
#define VIP_BENEATH(flags) ((flags) >> 16 & 0xff)

enum real_flag {
	REAL_IPV6 = 1u << 0,
	REAL_LOCAL = 1u << 1,
	REAL_GONE = 1u << 7, /* nfcore's own, Katran never sets it: nothing is sent to the real any more */
};

enum ctl_slot {
	CTL_GATEWAY_MAC = 0,
	CTL_INTROSPECTION = 5, /* a u64: whether introspection.h samples packets */
};

/* Slots of `stats` after those of the VIPs; what v1 / v2 count. */
enum stats_slot {
	STATS_LRU = STATS_VIPS + 0, /* packets / misses */
	STATS_TCP_MISS = STATS_VIPS + 1, /* SYN / non-SYN */
	STATS_NEW_FLOWS = STATS_VIPS + 2, /* in this window / start of the window, ns */
	STATS_FALLBACK_LRU = STATS_VIPS + 3, /* packets / - */
	STATS_TOO_BIG = STATS_VIPS + 4, /* v4 / v6 */
	STATS_SOURCE_ROUTE = STATS_VIPS + 5, /* misses / hits */
	STATS_DECAP_ADDRESS = STATS_VIPS + 6, /* to an address of `decap_dst` / - */
	STATS_ENCAP_FAIL = STATS_VIPS + 7, /* v4 / v6 */
	STATS_GLOBAL_LRU = STATS_VIPS + 8, /* this CPU has none / hits */
	STATS_RING_DROP = STATS_VIPS + 9, /* no such real / real 0 */
	STATS_DECAP = STATS_VIPS + 10, /* outer v4 / v6 */
	STATS_QUIC_ICMP = STATS_VIPS + 11, /* errors of flows to a QUIC VIP: all / ignorable */
	STATS_ICMP_TOO_BIG_V6 = STATS_VIPS + 12, /* all / MTU below 1280 */
	STATS_ICMP_TOO_BIG_V4 = STATS_VIPS + 13,
	STATS_CROSS_POP = STATS_VIPS + 14, /* decapsulated and balanced: inner v4 / v6 */
	STATS_MIGRATED = STATS_VIPS + 15, /* UDP flows that left a real which is down / - */
	STATS_XDP_TOTAL = STATS_VIPS + 16, /* packets / bytes of the frame */
	STATS_XDP_TX = STATS_VIPS + 17,
	STATS_XDP_DROP = STATS_VIPS + 18,
	STATS_XDP_PASS = STATS_VIPS + 19,
	STATS_EGRESS_DECAP = STATS_VIPS + 20, /* decapsulated and sent: inner v4 / v6 */
	STATS_NO_NEXT_HOP = STATS_VIPS + 510, /* nfcore's own: the MAC address to send to is not known */
	STATS_RING = STATS_VIPS + 511, /* nfcore's own: routed by a ring / put into a connection table */
};

struct vip_definition {
	__be32 addr[4];
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct vip_lpm_key {
	__u32 prefixlen; /* 32 + the address's prefix: port and protocol always count */
	__be16 port;
	__u8 proto;
	__u8 pad;
	__be32 addr[4];
};

/* Key of nfcore's own map of the VIPs' addresses. */
struct vip_address_key {
	__u32 prefixlen; /* 32 + the address's prefix */
	__u8 family; /* 4 or 6 */
	__u8 proto;
	__u16 pad;
	__be32 addr[4];
};

struct vip_meta {
	__u32 flags;
	__u32 vip_num;
};

struct real_definition {
	__be32 addr[4];
	__u8 flags;
	__u8 pad;
	__u16 next_hop; /* nfcore's own, padding in Katran's, which writes 0: see device.h */
};

/* `left`, `reports` and `by_syn` use the ABI's padding word. Katran writes 0 there: nothing reported yet. */
struct real_pos_lru {
	__u32 pos;
	__u16 left;
	__u8 reports;
	__u8 by_syn; /* a SYN has made the entry */
	__u64 atime;
};

struct quic_stats {
	__u64 ch_routed; /* no id: by connection table or ring */
	__u64 cid_initial;
	__u64 cid_invalid_server_id;
	__u64 cid_invalid_server_id_sample; /* the last one */
	__u64 cid_routed;
	__u64 cid_unknown_real_dropped;
	__u64 cid_versions[4];
	__u64 dst_match_in_lru;
	__u64 dst_mismatch_in_lru;
	__u64 dst_not_found_in_lru;
};

struct stable_routing_stats {
	__u64 ch_routed;
	__u64 cid_routed;
	__u64 cid_invalid_server_id;
	__u64 cid_unknown_real_dropped;
	__u64 invalid_packet_type;
};

struct tcp_server_id_stats {
	__u64 ch_routed;
	__u64 dst_mismatch_in_lru;
	__u64 sid_routed;
	__u64 tcp_syn;
};

struct source_key_v4 {
	__u32 prefixlen;
	__be32 addr;
};

struct source_key_v6 {
	__u32 prefixlen;
	__be32 addr[4];
};

struct lb_stats {
	__u64 v1;
	__u64 v2;
};

struct ctl_value {
	__u8 mac[6];
	__u8 pad[2];
};
