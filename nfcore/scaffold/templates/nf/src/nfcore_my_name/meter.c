// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts the packets to some ports and passes every packet on: to the next function of the chain, or to the kernel.
 *
 *   packet ──► mark ──► meter_marks: is it the port of the packet? count the packet        (fast path)
 *                └─ no mark, or a wrong one ──► meter_ports: is it one of the ports? count the packet,
 *                                               remember its flow, and report the flow when it has
 *                                               enough packets                               (slow path)
 *
 * The headers in lib/ are nfcore's.
 */
#include <linux/bpf.h>

#include "lib/carriers/carrier.h"
#include "lib/chain.h"
#include "lib/map_handle.h"
#include "lib/packet.h"

/* The entry of a mark: a port, and the slot of its counters. Port 0: no entry. */
struct meter_mark {
	__u32 port;
	__u32 slot;
};

struct meter_count {
	__u64 fast;
	__u64 slow;
};

struct meter_flow {
	struct flow_key key;
	__u32 family; /* 4 or 6: an IPv4 and an IPv6 key may be equal */
};

struct meter_event {
	struct meter_flow flow;
	__u32 ifindex;
	__u32 packets;
	__u32 cpu;
};

static __always_inline enum parse_result read_flow(struct packet *packet, __u32 *family, void *data, void *data_end)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return PARSE_NO_ADDRESSES;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		*family = 4;
		return read_ipv4(packet, data, data_end);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		*family = 6;
		return read_ipv6(packet, data, data_end);
	}
	return PARSE_OTHER;
}

static __always_inline void report(struct xdp_md *ctx, const struct meter_flow *flow, __u32 packets)
{
	struct meter_event *event = bpf_ringbuf_reserve(MAP(meter_events), sizeof(*event), 0);

	/* The buffer is full: the flow is reported again later. */
	if (!event)
		return;
	event->flow = *flow;
	event->ifindex = ctx->ingress_ifindex;
	event->packets = packets;
	event->cpu = bpf_get_smp_processor_id();
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* Reports a flow after MIN_PACKETS packets, and again after 2, 4, 8, … times as many: a rule may have been refused. */
static __always_inline void count_flow(struct xdp_md *ctx, const struct meter_flow *flow)
{
	__u64 zero = 0, *packets = bpf_map_lookup_elem(MAP(meter_flows), flow);
	__u64 seen, times;

	if (!packets) {
		bpf_map_update_elem(MAP(meter_flows), flow, &zero, BPF_NOEXIST);
		packets = bpf_map_lookup_elem(MAP(meter_flows), flow);
		if (!packets)
			return;
	}
	/* Not atomic, so not exact when several CPUs have packets of the flow. */
	seen = *packets + 1;
	*packets = seen;
	times = seen / MIN_PACKETS;
	if (seen % MIN_PACKETS == 0 && (times & (times - 1)) == 0)
		report(ctx, flow, seen);
}

/* Lets a packet go on of which this function has no opinion. */
static __always_inline int pass_on(struct xdp_md *ctx)
{
	__u32 first = 0;
	__u64 *packets = bpf_map_lookup_elem(MAP(meter_others), &first);

	if (packets)
		*packets += 1;
	return chain_next(ctx, XDP_PASS);
}

int meter_ingress(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u32 mark = carrier_mark(ctx);
	struct meter_mark *entry;
	struct meter_count *count;
	struct packet packet = {};
	struct meter_flow flow = {};
	__u32 port, *slot;

	if (read_flow(&packet, &flow.family, data, data_end) != PARSE_OK)
		return pass_on(ctx);
	port = bpf_ntohs(packet.flow.dport);
	/* A mark is a hint, so check it: it may be stale or foreign. */
	entry = bpf_map_lookup_elem(MAP(meter_marks), &mark);
	if (entry && entry->port && entry->port == port) {
		count = bpf_map_lookup_elem(MAP(meter_counts), &entry->slot);
		if (count)
			count->fast += 1;
		return chain_next(ctx, XDP_PASS);
	}
	slot = bpf_map_lookup_elem(MAP(meter_ports), &port);
	if (!slot)
		return pass_on(ctx);
	count = bpf_map_lookup_elem(MAP(meter_counts), slot);
	if (count)
		count->slow += 1;
	flow.key = packet.flow;
	count_flow(ctx, &flow);
	return chain_next(ctx, XDP_PASS);
}
