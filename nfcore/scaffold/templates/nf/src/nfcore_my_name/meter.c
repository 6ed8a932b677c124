// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts the packets to some ports and lets every packet pass.
 *
 *   packet ──► mark ──► meter_marks: is that this packet's port? count it                             (fast path)
 *                └─ no mark, or a wrong one ──► meter_ports: do we watch its port? count it, know its flow,
 *                                               and report the flow when it has shown itself worth a rule  (slow path)
 *
 * Headers in lib/ are nfcore's.
 */
#include <linux/bpf.h>

#include "lib/carriers/carrier.h"
#include "lib/map_handle.h"
#include "lib/packet.h"

/* What a mark means: a port, and where it is counted. Port 0: nothing. */
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
	__u32 family; /* 4 or 6: the key alone cannot tell */
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
		return PARSE_MALFORMED;
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

	/* No room: the flow is reported again. */
	if (!event)
		return;
	event->flow = *flow;
	event->ifindex = ctx->ingress_ifindex;
	event->packets = packets;
	event->cpu = bpf_get_smp_processor_id();
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* Reports a flow after MIN_PACKETS packets and, since a rule may be refused, after twice as many, four times, … */
static __always_inline void look_at(struct xdp_md *ctx, const struct meter_flow *flow)
{
	__u64 nothing = 0, *packets = bpf_map_lookup_elem(MAP(meter_flows), flow);
	__u64 seen, times;

	if (!packets) {
		bpf_map_update_elem(MAP(meter_flows), flow, &nothing, BPF_NOEXIST);
		packets = bpf_map_lookup_elem(MAP(meter_flows), flow);
		if (!packets)
			return;
	}
	/* Roughly, where CPUs share a flow. */
	seen = *packets + 1;
	*packets = seen;
	times = seen / MIN_PACKETS;
	if (seen % MIN_PACKETS == 0 && (times & (times - 1)) == 0)
		report(ctx, flow, seen);
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
		return XDP_PASS;
	port = bpf_ntohs(packet.flow.dport);
	/* A mark is a hint, and looked at: it may be stale, or somebody else's. */
	entry = bpf_map_lookup_elem(MAP(meter_marks), &mark);
	if (entry && entry->port && entry->port == port) {
		count = bpf_map_lookup_elem(MAP(meter_counts), &entry->slot);
		if (count)
			count->fast += 1;
		return XDP_PASS;
	}
	slot = bpf_map_lookup_elem(MAP(meter_ports), &port);
	if (!slot)
		return XDP_PASS;
	count = bpf_map_lookup_elem(MAP(meter_counts), slot);
	if (count)
		count->slow += 1;
	flow.key = packet.flow;
	look_at(ctx, &flow);
	return XDP_PASS;
}
