// SPDX-License-Identifier: GPL-2.0-only
/*
 * The L4 load balancer.
 *
 *   frame ──► to us? ──► fixed headers ──► mark? ──► entry ──► checks ──► encapsulate ──► XDP_TX
 *                                 │         any mismatch │        ▲
 *                                 └──────────────────────┴► VIP ──► LRU ──► ring
 *
 * Build-time choices: CARRIER_*, MARK_IS_FLOW | MARK_IS_TARGET, EVENTS_RINGBUF | EVENTS_PERF, MIN_PACKETS,
 * POOL_SLOTS, CHAIN_NEXT, CAPTURE, INTROSPECTION, those of device.h, and FD_<map> for every map.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "lib/carriers/carrier.h"
#include "lib/chain.h"
#include "lib/packet.h"
#include "capture.h"
#include "counters.h"
#include "device.h"
#include "fast_path.h"
#include "katran_abi.h"
#include "real.h"
#include "reason.h"
#include "slow_path.h"
#include "vip.h"

/* Counts a frame by its verdict. What is no traffic of a VIP goes on to the next function of the chain. */
static __always_inline int finish(struct xdp_md *ctx, const struct packet *packet, int verdict)
{
	capture(ctx, packet, verdict);
	count_verdict(verdict, packet->frame_bytes);
	return verdict == XDP_PASS ? chain_next(ctx, verdict) : verdict;
}

/* `family` is a constant in both calls: the compiler makes separate code for each. */
static __always_inline int balance(struct xdp_md *ctx, void *data, void *data_end, const struct device *device,
				   __u32 mark, int family)
{
	struct packet packet = {.frame_bytes = data_end - data};
	enum parse_result result =
		family == AF_INET ? read_ipv4(&packet, data, data_end) : read_ipv6(&packet, data, data_end);
	int verdict;

	if (result == PARSE_OTHER)
		return finish(ctx, &packet, because(&packet, REASON_OTHER_PROTOCOL, XDP_PASS));
	if (result != PARSE_OK) {
		if (result != PARSE_NO_ADDRESSES && !is_addressed_to_vip(&packet, result, family))
			return finish(ctx, &packet, because(&packet, REASON_NOT_A_VIP, XDP_PASS));
		count(ACCEL_MALFORMED);
		return finish(ctx, &packet, because(&packet, REASON_MALFORMED, XDP_DROP));
	}
#if USES_MARKS
	if (mark) {
		struct route route;

		if (is_tcp_edge(&packet) || packet.frame_bytes > MAX_FRAME_BYTES) {
			count(ACCEL_INELIGIBLE);
		} else if (follow_mark(&route, &packet, mark, family)) {
			note_reason(&packet, REASON_BY_MARK);
			verdict = send_to_real(ctx, &packet, device, &route, family);
			capture(ctx, &packet, verdict);
			return count_verdict(verdict, packet.frame_bytes);
		}
	}
#endif
	verdict = slow_path(ctx, &packet, device, mark, family);
	return finish(ctx, &packet, verdict);
}

int balancer_ingress(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	const struct device *device = device_of(ctx);
	__u32 mark = carrier_mark(ctx);

	if ((void *)(eth + 1) > data_end) {
		count(ACCEL_MALFORMED);
		capture_frame(ctx, REASON_MALFORMED, data_end - data, XDP_DROP);
		return count_verdict(XDP_DROP, data_end - data);
	}
	if (!device || !is_addressed(eth, device)) {
		capture_frame(ctx, REASON_NOT_ADDRESSED, data_end - data, XDP_PASS);
		return chain_next(ctx, XDP_PASS);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return balance(ctx, data, data_end, device, mark, AF_INET);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return balance(ctx, data, data_end, device, mark, AF_INET6);
	capture_frame(ctx, REASON_OTHER_PROTOCOL, data_end - data, XDP_PASS);
	count_verdict(XDP_PASS, data_end - data);
	return chain_next(ctx, XDP_PASS);
}
