/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Gives user space samples of packets, each with its verdict and the reason (reason.h), for `nfcore capture`.
 *
 *   verdict ──► hw_accel_capture: does a capture run, does the packet fit ──► one of `every` ──► hw_accel_samples
 *
 * Without CAPTURE nothing of this is in the program. With it, and without a running capture, a packet costs one look-up
 * in an array. A sample has the frame as it leaves: with its outer header, if it got one.
 *
 * User space moves `until` on while it reads. So a capture whose reader or daemon has died ends by itself.
 */
#pragma once

#include <linux/bpf.h>

#include "lib/map_handle.h"
#include "lib/packet.h"
#include "reason.h"

#define SAMPLE_BYTES 256

/* The only element of `hw_accel_capture`: which packets are wanted. */
struct capture_filter {
	__u64 until; /* by bpf_ktime_get_ns(); 0: no capture runs */
	__u64 reasons; /* a bit per enum reason */
	__u32 verdicts; /* a bit per enum xdp_action */
	__u32 vip; /* number of the VIP, and one; 0: any */
	__u32 real; /* 0: any, or none */
	__u32 every; /* one of so many packets that fit, on each CPU */
	__u32 bytes; /* of a frame, at most SAMPLE_BYTES */
	__u32 pad;
};

/* The only element of `hw_accel_captured`, per CPU. */
struct capture_counts {
	__u64 fitting; /* packets that the filter wants, sampled or not */
	__u64 lost; /* samples for which there was no room */
};

struct capture_sample {
	__u64 time; /* bpf_ktime_get_ns() */
	__u32 frame_bytes; /* of the frame as it leaves */
	__u32 arrived_bytes;
	__u32 ifindex; /* that the packet came by: of a bond's port, not of the bond */
	__u32 queue;
	__u32 vip; /* number of the VIP, and one; 0: none */
	__u32 real; /* 0: none */
	__u16 cpu;
	__u16 bytes; /* how many of `frame` are set */
	__u8 reason;
	__u8 verdict;
	__u16 pad;
	__u8 frame[SAMPLE_BYTES];
};

#ifdef CAPTURE
static __always_inline int is_wanted(const struct capture_filter *filter, const struct packet *packet, int verdict)
{
	if (!(filter->verdicts >> verdict & 1) || !(filter->reasons >> packet->note.reason & 1))
		return 0;
	if (filter->vip && filter->vip != packet->note.vip)
		return 0;
	return !filter->real || filter->real == packet->note.real;
}

/* Copies the beginning of the frame, and says how many bytes that is. */
static __always_inline __u16 copy_frame(struct xdp_md *ctx, struct capture_sample *sample, __u32 wanted)
{
	__u64 bytes = sample->frame_bytes < wanted ? sample->frame_bytes : wanted;

	/* The verifier must see the limit of the register that the helper gets. */
	asm volatile("" : "+r"(bytes));
	if (bytes > SAMPLE_BYTES)
		bytes = SAMPLE_BYTES;
	bpf_probe_read_kernel(sample->frame, bytes, (void *)(long)ctx->data);
	return bytes;
}

static __always_inline void give_sample(struct xdp_md *ctx, const struct capture_filter *filter,
					struct capture_counts *counts, const struct packet *packet, int verdict,
					__u64 now)
{
	struct capture_sample *sample = bpf_ringbuf_reserve(MAP(hw_accel_samples), sizeof(*sample), 0);

	if (!sample) {
		counts->lost += 1;
		return;
	}
	sample->time = now;
	sample->frame_bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	sample->arrived_bytes = packet->frame_bytes;
	sample->ifindex = ctx->ingress_ifindex;
	sample->queue = ctx->rx_queue_index;
	sample->vip = packet->note.vip;
	sample->real = packet->note.real;
	sample->cpu = bpf_get_smp_processor_id();
	sample->reason = packet->note.reason;
	sample->verdict = verdict;
	sample->pad = 0;
	sample->bytes = copy_frame(ctx, sample, filter->bytes);
	bpf_ringbuf_submit(sample, BPF_RB_NO_WAKEUP);
}

/* Gives a sample of the packet, if a capture wants one. Call it once per packet, before the packet goes on. */
static __always_inline void capture(struct xdp_md *ctx, const struct packet *packet, int verdict)
{
	const struct capture_filter *filter;
	struct capture_counts *counts;
	__u32 slot = 0;
	__u64 now;

	filter = bpf_map_lookup_elem(MAP(hw_accel_capture), &slot);
	if (!filter || !filter->until || !is_wanted(filter, packet, verdict))
		return;
	now = bpf_ktime_get_ns();
	counts = bpf_map_lookup_elem(MAP(hw_accel_captured), &slot);
	if (now > filter->until || !counts)
		return;
	counts->fitting += 1;
	if (filter->every < 2 || counts->fitting % filter->every == 1)
		give_sample(ctx, filter, counts, packet, verdict, now);
}
#else
static __always_inline void capture(struct xdp_md *ctx, const struct packet *packet, int verdict)
{
}
#endif

/* The same for a frame that was not read further. */
static __always_inline void capture_frame(struct xdp_md *ctx, enum reason reason, __u32 frame_bytes, int verdict)
{
	struct packet packet = {.frame_bytes = frame_bytes};

	note_reason(&packet, reason);
	capture(ctx, &packet, verdict);
}
