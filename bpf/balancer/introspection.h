/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Katran's samples of packets that something unusual happens to, as published: a record in `event_pipe`, a perf buffer
 * per CPU, while ctl_array[CTL_INTROSPECTION] is not 0. Without INTROSPECTION they cost no instruction.
 */
#pragma once

#include <linux/bpf.h>

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "katran_abi.h"

#define EVENT_FRAME_BYTES 128u

enum introspection_event {
	EVENT_TCP_NOT_SYN, /* of no connection that is known: goes to the ring */
	EVENT_TOO_BIG,
	EVENT_QUIC_UNKNOWN_REAL, /* a connection id whose real is not there */
};

/* What a record begins with; the first bytes of the frame follow. */
struct event_metadata {
	__u32 event;
	__u32 frame_bytes;
	__u32 bytes; /* of the frame that follow */
};

/* Gives a sample of the frame as it is now. */
static __always_inline void sample_event(struct xdp_md *ctx, enum introspection_event event)
{
#ifdef INTROSPECTION
	struct event_metadata sample = {.event = event};
	__u32 slot = CTL_INTROSPECTION;
	__u64 *gate = bpf_map_lookup_elem(MAP(ctl_array), &slot);

	if (!gate || !*gate)
		return;
	sample.frame_bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	sample.bytes = sample.frame_bytes < EVENT_FRAME_BYTES ? sample.frame_bytes : EVENT_FRAME_BYTES;
	bpf_perf_event_output(ctx, MAP(event_pipe), BPF_F_CURRENT_CPU | (__u64)sample.bytes << 32, &sample,
			      sizeof(sample));
#endif
}

/* A packet whose flow is in no connection table. */
static __always_inline void sample_miss(struct xdp_md *ctx, const struct packet *packet)
{
	if (packet->flow.proto == IPPROTO_TCP && !is_syn(packet))
		sample_event(ctx, EVENT_TCP_NOT_SYN);
}
