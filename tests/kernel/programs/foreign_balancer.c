// SPDX-License-Identifier: GPL-2.0-only
/*
 * A small balancer on Katran's maps, as somebody else compiles it: clang, maps described by BTF, libbpf's sections. It
 * has the published names and layouts from here alone. IPv4, TCP and UDP, IPIP to IPv4 reals; no VIP flags.
 *
 * Build-time choices: RINGS; LOOSE_RING, WIDE_REALS, SMALL_STATS, NO_RINGS, WRONG_LRU: maps that are not as published;
 * REFUSED: the verifier refuses it; NO_PROGRAM, TWO_PROGRAMS, OTHER_NAME; NO_INNER: nothing says what lru_mapping holds;
 * PINNED: libbpf is asked to pin a map; SOURCES: with pckt_srcs; ROUTING: with server ids of QUIC, source routes, reals
 * that are down, and ends of IPIP tunnels.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/jhash.h"

#define RING_SIZE 65537
#define MAX_VIPS 512
#define MAX_REALS 4096
#define SEED 33554944
#ifndef RINGS
#define RINGS MAX_VIPS
#endif

struct address {
	union {
		__be32 v4;
		__be32 v6[4];
	};
};

struct vip_definition {
	struct address address;
	__be16 port;
	__u8 proto;
};

struct vip_meta {
	__u32 flags;
	__u32 vip_num;
};

struct real_definition {
	struct address address;
	__u8 flags;
#ifdef WIDE_REALS
	__u64 more;
#endif
};

struct flow_key {
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
};

struct real_pos_lru {
	__u32 pos;
	__u64 atime;
};

struct lb_stats {
	__u64 v1;
	__u64 v2;
};

struct ctl_value {
	union {
		__u64 value;
		__u8 mac[6];
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct vip_definition);
	__type(value, struct vip_meta);
	__uint(max_entries, MAX_VIPS);
#ifdef PINNED
	__uint(pinning, LIBBPF_PIN_BY_NAME);
#endif
} vip_map SEC(".maps");

#ifndef NO_RINGS
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
#ifdef LOOSE_RING
	__uint(max_entries, RINGS *RING_SIZE + 1);
#else
	__uint(max_entries, RINGS *RING_SIZE);
#endif
} ch_rings SEC(".maps");
#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct real_definition);
	__uint(max_entries, MAX_REALS);
} reals SEC(".maps");

/* First: clang 14 describes the structs of inner maps only if a map before has them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow_key);
	__type(value, struct real_pos_lru);
	__uint(max_entries, 1000);
} fallback_cache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 128);
#ifndef NO_INNER
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_LRU_HASH);
			__type(key, struct flow_key);
#ifdef WRONG_LRU
			__type(value, __u32);
#else
			__type(value, struct real_pos_lru);
#endif
			__uint(max_entries, 1000);
		});
#endif
} lru_mapping SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct lb_stats);
#ifdef SMALL_STATS
	__uint(max_entries, MAX_VIPS);
#else
	__uint(max_entries, 2 * MAX_VIPS);
#endif
} stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct lb_stats);
	__uint(max_entries, MAX_REALS);
} reals_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct ctl_value);
	__uint(max_entries, 16);
} ctl_array SEC(".maps");

/* A map that nfcore does not know. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} frames_seen SEC(".maps");

/* In slot 0 is this program itself: for packets that it has decapsulated. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} subprograms SEC(".maps");

#ifdef SOURCES
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct real_definition);
	__uint(max_entries, 2);
} pckt_srcs SEC(".maps");
#endif

#ifdef ROUTING
#define QUIC_VIP (1 << 2)
#define SRC_ROUTING (1 << 4)
#define UDP_FLOW_MIGRATION (1 << 9)

struct source_v4 {
	__u32 prefixlen;
	__be32 address;
};

struct source_v6 {
	__u32 prefixlen;
	__be32 address[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 16777214);
} server_id_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct source_v4);
	__type(value, __u32);
	__uint(max_entries, 3000000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} lpm_src_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct source_v6);
	__type(value, __u32);
	__uint(max_entries, 3000000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} lpm_src_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, MAX_VIPS);
} decap_dst SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__type(key, struct vip_definition);
	__type(value, __u32);
	__uint(max_entries, MAX_VIPS);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__type(key, __u32);
			__type(value, __u8);
			__uint(max_entries, MAX_REALS);
		});
} vip_to_down_reals_map SEC(".maps");
#endif

/* In the file, and of no concern to who drives it. */
const volatile __u32 ttl = 64;

static __always_inline void count(void *map, __u32 slot, __u64 bytes)
{
	struct lb_stats *counter = bpf_map_lookup_elem(map, &slot);

	if (counter) {
		counter->v1 += 1;
		counter->v2 += bytes;
	}
}

static __always_inline __u32 by_connection(void *table, const struct flow_key *flow)
{
	struct real_pos_lru *known = table ? bpf_map_lookup_elem(table, flow) : 0;

	return known ? known->pos : 0;
}

#ifndef NO_RINGS
static __always_inline __u32 by_ring(const struct flow_key *flow, const struct vip_meta *vip)
{
	__u32 ports = flow->sport | (__u32)flow->dport << 16;
	__u32 slot = vip->vip_num * RING_SIZE + jhash_2words(flow->src.v4, ports, SEED) % RING_SIZE;
	__u32 *real = bpf_map_lookup_elem(&ch_rings, &slot);

	return real ? *real : 0;
}
#endif

static __always_inline int encapsulate(struct xdp_md *ctx, __be32 source, const struct real_definition *real)
{
	__u32 slot = 0;
	struct ctl_value *gateway = bpf_map_lookup_elem(&ctl_array, &slot);
	struct ethhdr *before, *after;
	struct iphdr *ip;
	__u32 sum = 0;

	if (!gateway || bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)))
		return XDP_DROP;
	after = (void *)(long)ctx->data;
	before = (void *)after + sizeof(*ip);
	ip = (void *)(after + 1);
	if ((void *)(before + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(after->h_source, before->h_dest, 6);
	__builtin_memcpy(after->h_dest, gateway->mac, 6);
	after->h_proto = bpf_htons(ETH_P_IP);
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->ttl = ttl;
	ip->protocol = IPPROTO_IPIP;
	ip->tot_len = bpf_htons((long)ctx->data_end - (long)ip);
	ip->saddr = source;
	ip->daddr = real->address.v4;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += ((__u16 *)ip)[i];
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~((sum & 0xffff) + (sum >> 16));
	return XDP_TX;
}

#ifdef ROUTING
/* The real that the short header of a QUIC packet names; 0: none. */
static __always_inline __u32 by_server_id(void *data, void *data_end)
{
	__u8 *quic = data + sizeof(struct ethhdr) + sizeof(struct iphdr) + 8;
	__u32 *real, id;

	if ((void *)(quic + 9) > data_end || quic[0] & 0x80 || quic[1] >> 6 != 1)
		return 0;
	id = (quic[1] & 0x3f) << 10 | quic[2] << 2 | quic[3] >> 6;
	real = bpf_map_lookup_elem(&server_id_map, &id);
	return real ? *real : 0;
}

static __always_inline __u32 by_source(__be32 address)
{
	struct source_v4 key = {.prefixlen = 32, .address = address};
	__u32 *real = bpf_map_lookup_elem(&lpm_src_v4, &key);

	return real ? *real : 0;
}

static __always_inline __u32 unless_down(const struct vip_definition *vip, __u32 real)
{
	void *down = bpf_map_lookup_elem(&vip_to_down_reals_map, vip);

	return down && bpf_map_lookup_elem(down, &real) ? 0 : real;
}

/* Takes the outer header off when a tunnel ends here. */
static __always_inline int decapsulate(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data, header;
	struct iphdr *ip = (void *)(eth + 1);
	struct address key = {};

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end || ip->protocol != IPPROTO_IPIP)
		return 0;
	key.v4 = ip->daddr;
	if (!bpf_map_lookup_elem(&decap_dst, &key))
		return 0;
	header = *eth;
	if (bpf_xdp_adjust_head(ctx, sizeof(*ip)))
		return 0;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return 0;
	*eth = header;
	count(&stats, MAX_VIPS + 6, 0);
	return 1;
}
#endif

static __always_inline int balance(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	__be16 *ports = (void *)(ip + 1);
	struct vip_definition wanted = {};
	struct real_pos_lru entry = {};
	struct real_definition *real;
	struct flow_key flow = {};
	struct vip_meta *vip;
	void *table;
	__u32 cpu = bpf_get_smp_processor_id(), zero = 0, number;
	__u64 *frames = bpf_map_lookup_elem(&frames_seen, &zero);

#ifndef REFUSED
	if ((void *)(ports + 2) > (void *)(long)ctx->data_end)
		return XDP_DROP;
#endif
	if (frames)
		__sync_fetch_and_add(frames, 1);
	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	wanted.address.v4 = ip->daddr;
	wanted.port = ports[1];
	wanted.proto = ip->protocol;
	vip = bpf_map_lookup_elem(&vip_map, &wanted);
	if (!vip)
		return XDP_PASS;
	count(&stats, MAX_VIPS, 0);
	flow.src.v4 = ip->saddr;
	flow.dst.v4 = ip->daddr;
	flow.sport = ports[0];
	flow.dport = ports[1];
	flow.proto = ip->protocol;
	table = bpf_map_lookup_elem(&lru_mapping, &cpu);
	if (!table)
		table = &fallback_cache;
	number = by_connection(table, &flow);
#ifdef ROUTING
	if (vip->flags & UDP_FLOW_MIGRATION)
		number = unless_down(&wanted, number);
	if (vip->flags & QUIC_VIP) {
		__u32 named = by_server_id(eth, (void *)(long)ctx->data_end);

		number = named ? named : number;
	}
	if (!number && vip->flags & SRC_ROUTING)
		number = by_source(ip->saddr);
#endif
#ifndef NO_RINGS
	if (!number)
		number = by_ring(&flow, vip);
#endif
	real = number ? bpf_map_lookup_elem(&reals, &number) : 0;
	if (!real)
		return XDP_DROP;
	entry.pos = number;
	bpf_map_update_elem(table, &flow, &entry, BPF_ANY);
	count(&stats, vip->vip_num, bpf_ntohs(ip->tot_len));
	count(&reals_stats, number, bpf_ntohs(ip->tot_len));
	return encapsulate(ctx, ip->saddr, real);
}

#ifndef NO_PROGRAM
#if defined(TWO_PROGRAMS) || defined(OTHER_NAME)
SEC("xdp")
int one_program(struct xdp_md *ctx)
#else
SEC("xdp")
int balancer_ingress(struct xdp_md *ctx)
#endif
{
	__u64 bytes = ctx->data_end - ctx->data;
	int verdict;

#ifdef ROUTING
	if (decapsulate(ctx))
		bpf_tail_call(ctx, &subprograms, 0);
#endif
	verdict = balance(ctx);

	count(&stats, MAX_VIPS + 16, bytes);
	count(&stats, MAX_VIPS + 16 + (verdict == XDP_TX ? 1 : verdict == XDP_DROP ? 2 : 3), bytes);
	return verdict;
}
#endif

#ifdef TWO_PROGRAMS
SEC("xdp")
int another_program(struct xdp_md *ctx)
{
	return balance(ctx);
}
#endif

/* Also in the file: it must not be loaded, and the verifier would refuse it. */
SEC("tc")
int healthcheck_encap(struct __sk_buff *skb)
{
	return *(int *)(long)skb->data;
}

char _license[] SEC("license") = "GPL";
