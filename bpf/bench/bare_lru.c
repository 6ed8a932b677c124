// SPDX-License-Identifier: GPL-2.0-only
/*
 * The smallest balancer with a connection table: one look-up of the 5-tuple in an LRU hash, whose value is the real's
 * address, and IPIP to it. No VIPs, no counters, no checks except the bounds of the frame.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "balancer/outer_header.h"
#include "lib/flow_key.h"
#include "lib/map_handle.h"

struct bench_real {
	__be32 addr[4];
};

#ifdef IPV6
typedef struct ipv6hdr ip_header;
#define ETHERTYPE ETH_P_IPV6
#else
typedef struct iphdr ip_header;
#define ETHERTYPE ETH_P_IP
#endif

static __always_inline void read_key(struct flow_key *key, const ip_header *ip)
{
	const __be16 *ports = (const void *)(ip + 1);

#ifdef IPV6
	__builtin_memcpy(key->src, &ip->saddr, sizeof(key->src));
	__builtin_memcpy(key->dst, &ip->daddr, sizeof(key->dst));
	key->proto = ip->nexthdr;
#else
	key->src[0] = ip->saddr;
	key->dst[0] = ip->daddr;
	key->proto = ip->protocol;
#endif
	key->sport = ports[0];
	key->dport = ports[1];
}

static __always_inline void write_ethernet(void *data)
{
	__u32 *words = data;

	words[0] = bpf_htonl(0x02005e00);
	words[1] = bpf_htonl(0x00fe0200);
	words[2] = bpf_htonl(0x5e000001);
	*(__be16 *)(words + 3) = bpf_htons(ETHERTYPE);
}

#ifdef IPV6
static __always_inline void write_outer(ip_header *ip, __u16 inner_bytes, const struct bench_real *real)
{
	*(__be32 *)ip = bpf_htonl(0x60000000);
	ip->payload_len = bpf_htons(inner_bytes);
	ip->nexthdr = IPPROTO_IPV6;
	ip->hop_limit = OUTER_TTL;
	ip->saddr.in6_u.u6_addr32[0] = bpf_htonl(OUTER_V6_SOURCE);
	ip->saddr.in6_u.u6_addr32[1] = 0;
	ip->saddr.in6_u.u6_addr32[2] = 0;
	ip->saddr.in6_u.u6_addr32[3] = 0;
	__builtin_memcpy(&ip->daddr, real->addr, sizeof(ip->daddr));
}
#else
/* Version, header length and TOS; TTL and protocol; upper half of the source: the same words in all headers. */
#define FIRST_WORD 0x4500
#define TTL_WORD (OUTER_TTL << 8 | IPPROTO_IPIP)
#define SOURCE_WORD (OUTER_V4_SOURCE >> 16)

/* Computes the checksum from the values that it writes, without reading the header back. */
static __always_inline void write_outer(ip_header *ip, __u16 inner_bytes, const struct bench_real *real)
{
	__be16 total = bpf_htons(inner_bytes + sizeof(*ip));
	__be32 address = real->addr[0];
	__u32 sum = bpf_htons(FIRST_WORD) + bpf_htons(TTL_WORD) + bpf_htons(SOURCE_WORD);

	sum += total + (address & 0xffff) + (address >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	*(__be16 *)ip = bpf_htons(FIRST_WORD);
	ip->tot_len = total;
	ip->id = 0;
	ip->frag_off = 0;
	*(__be16 *)&ip->ttl = bpf_htons(TTL_WORD);
	ip->check = ~sum;
	ip->saddr = bpf_htonl(OUTER_V4_SOURCE);
	ip->daddr = address;
}
#endif

int bench_lru(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	ip_header *ip = data + sizeof(struct ethhdr);
	__u16 inner_bytes = data_end - (void *)ip;
	struct flow_key key = {};
	struct bench_real *real;

	if ((void *)(ip + 1) + sizeof(__be32) > data_end)
		return XDP_DROP;
	read_key(&key, ip);
	real = bpf_map_lookup_elem(MAP(bench_flows), &key);
	if (!real || bpf_xdp_adjust_head(ctx, -(int)sizeof(*ip)))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	ip = data + sizeof(struct ethhdr);
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	write_ethernet(data);
	write_outer(ip, inner_bytes, real);
	return XDP_TX;
}
