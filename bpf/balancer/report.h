/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reports to user space: that a flow is worth a rule, or that the rule of a flow must end.
 *
 * A flow is worth a rule after MIN_PACKETS packets on the slow path. Since a report may be lost and a rule refused, it
 * is reported again after twice as many packets, four times as many, …
 */
#pragma once

#include "lib/flow_key.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "lib/vlan.h"
#include "counters.h"
#include "device.h"
#include "katran_abi.h"
#include "mark_entry.h"
#include "mark_pool.h"

#define REPORT_BACKOFF_LIMIT 0x8000u
/* After a FIN a connection is reported when it has as many packets as after three reports. */
#define CLOSING_DISTANCE report_distance(3)

enum report_kind {
	REPORT_NONE,
	REPORT_FLOW, /* is worth a rule */
	REPORT_ENDED, /* has a rule, or was reported, and its connection ends */
	REPORT_MOVED, /* has a rule, and a new connection with its addresses goes to another real */
};

/* What to report of a packet's flow. */
struct report {
	enum report_kind kind;
	__u16 reports; /* earlier reports of the flow */
};

struct hw_accel_event {
	struct flow_key flow;
	__u32 vip_num;
	__u32 real_key;
	__u32 mark; /* 0: none was taken */
	__u32 packets; /* of the flow on this CPU's slow path, roughly */
	__u32 ifindex;
	__u16 cpu;
	__u8 family; /* 4 or 6 */
	__u8 kind; /* enum report_kind, less REPORT_FLOW */
#ifdef VLAN
	__u16 vlans[MAX_VLAN_TAGS];
	__u32 pad;
#endif
};

/* Packets before report number `reports` (from 0). */
static __always_inline __u16 report_distance(__u16 reports)
{
	__u32 distance = (__u32)MIN_PACKETS << (reports & 15);

	return distance < REPORT_BACKOFF_LIMIT ? distance : REPORT_BACKOFF_LIMIT;
}

/* Counts one packet in the flow's entry; true when the flow must be reported. */
static __always_inline int report_is_due(struct real_pos_lru *entry)
{
	__u16 left = entry->left ? entry->left : report_distance(0);

	if (left > 1) {
		entry->left = left - 1;
		return 0;
	}
	if (entry->reports < 15)
		entry->reports += 1;
	entry->left = report_distance(entry->reports);
	return 1;
}

/*
 * Notes that the flow's connection closes, and so that its last packets do not report it. True when that must be
 * reported: a flow with a rule, or one on its way to the NIC. Once: a client may repeat its FIN as often as it likes.
 * `entry` is NULL when the connection table does not have the flow; `expected`: it is known to have a rule, or a report.
 */
static __always_inline int end_is_due(struct real_pos_lru *entry, int expected)
{
	int due;

	if (!entry)
		return expected;
	due = entry->reports || (expected && entry->left != CLOSING_DISTANCE);
	entry->reports = 0;
	entry->left = CLOSING_DISTANCE;
	return due;
}

#ifdef MARK_IS_FLOW
/*
 * Writes the entry of a mark that no rule sets yet. A packet with a forged mark may read it meanwhile: the generation
 * is 0 until the rest is written.
 */
static __always_inline int write_entry(__u32 mark, const struct hw_accel_event *event)
{
	struct hw_accel_flow *entry = bpf_map_lookup_elem(MAP(hw_accel_mapping), &mark);
	struct vip_by_id *vip = bpf_map_lookup_elem(MAP(vip_map_by_id), &event->vip_num);
	__u32 *real_generation = bpf_map_lookup_elem(MAP(hw_accel_reals), &event->real_key);

	if (!entry || !vip || !real_generation)
		return 0;
	*(volatile __u32 *)&entry->vip_generation = 0;
	entry->vip_num = event->vip_num;
	entry->real_key = event->real_key;
	__builtin_memcpy(&entry->flow, &event->flow, sizeof(entry->flow));
	entry->family = event->family;
	entry->real_generation = *real_generation;
	*(volatile __u32 *)&entry->vip_generation = vip->generation;
	return 1;
}

static __always_inline __u32 mark_for(const struct hw_accel_event *event)
{
	__u32 mark = take_mark(event->cpu);

	if (!mark) {
		count(ACCEL_POOL_EMPTY);
		return 0;
	}
	if (!write_entry(mark, event)) {
		give_back_mark(event->cpu);
		return 0;
	}
	return mark;
}
#else
static __always_inline __u32 mark_for(const struct hw_accel_event *event)
{
	return 0;
}
#endif

#if USES_MARKS
static __always_inline void fill_event(struct hw_accel_event *event, struct xdp_md *ctx, const struct packet *packet,
				       const struct device *device, __u32 vip_num, __u32 real_key,
				       const struct report *report, int family)
{
	__builtin_memcpy(&event->flow, &packet->flow, sizeof(event->flow));
	event->vip_num = vip_num;
	event->real_key = real_key;
	event->packets = (__u32)MIN_PACKETS * ((2u << (report->reports & 15)) - 1);
	event->ifindex = device->ifindex;
	event->cpu = bpf_get_smp_processor_id();
	event->family = family == AF_INET ? 4 : 6;
	event->kind = report->kind - REPORT_FLOW;
#ifdef VLAN
	event->vlans[0] = packet->vlans[0];
	event->vlans[1] = packet->vlans[1];
	event->pad = 0;
#endif
	event->mark = report->kind == REPORT_FLOW ? mark_for(event) : 0;
}

/*
 * Reserves room in the ring buffer first: without it no mark is taken. User space polls, so it is woken only when a
 * rule sends a new connection to the wrong real.
 */
static __always_inline void report_flow(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					__u32 vip_num, __u32 real_key, const struct report *report, int family)
{
#ifdef EVENTS_RINGBUF
	struct hw_accel_event *event = bpf_ringbuf_reserve(MAP(hw_accel_events), sizeof(*event), 0);

	if (!event) {
		count(ACCEL_REPORT_LOST);
		return;
	}
	fill_event(event, ctx, packet, device, vip_num, real_key, report, family);
	bpf_ringbuf_submit(event, report->kind == REPORT_MOVED ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
#else
	struct hw_accel_event event;

	fill_event(&event, ctx, packet, device, vip_num, real_key, report, family);
	if (bpf_perf_event_output(ctx, MAP(hw_accel_events), BPF_F_CURRENT_CPU, &event, sizeof(event))) {
		if (event.mark)
			give_back_mark(event.cpu);
		count(ACCEL_REPORT_LOST);
		return;
	}
#endif
	count(ACCEL_REPORTED);
}
#else
static __always_inline void report_flow(struct xdp_md *ctx, const struct packet *packet, const struct device *device,
					__u32 vip_num, __u32 real_key, const struct report *report, int family)
{
}
#endif
