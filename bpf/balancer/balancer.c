// SPDX-License-Identifier: GPL-2.0-only
/*
 * The L4 load balancer.
 *
 *   frame ──► to us? ──► fixed headers ──► mark? ──► entry ──► checks ──► encapsulate ──► XDP_TX
 *                                 │         any mismatch │        ▲
 *                                 └──────────────────────┴► VIP ──► LRU ──► ring
 *
 * Build-time choices: CARRIER_*, MARK_IS_FLOW | MARK_IS_TARGET, EVENTS_RINGBUF | EVENTS_PERF, MIN_PACKETS,
 * POOL_SLOTS, CHAIN_NEXT, those of device.h, and FD_<map> for every map.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "choices.h"
#include "lib/carriers/carrier.h"
#include "lib/chain.h"
#include "lib/packet.h"
#include "counters.h"
#include "device.h"
#include "fast_path.h"
#include "fragment.h"
#include "icmp.h"
#include "inline_decap.h"
#include "katran_abi.h"
#include "capture.h"
#include "real.h"
#include "reason.h"
#include "slow_path.h"
#include "vip.h"

/* No verdict: the packet goes on as one of a flow. */
#define CONTINUES -3

/*
 * What is neither TCP nor UDP. Returns a verdict, or CONTINUES: the packet has the flow of an ICMP error now. `family` is
 * a constant in every call: the compiler makes separate code for each.
 */
static __always_inline int read_other(struct xdp_md *ctx, struct packet *packet, void *data, void *data_end, int family)
{
#ifdef ICMP
	if (packet->flow.proto == (family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		switch (read_icmp(packet, data, data_end, family)) {
		case ICMP_QUOTES_FLOW:
			return CONTINUES;
		case ICMP_ANSWER:
			return because(packet, REASON_ECHO, answer_echo(ctx, packet, family));
		case ICMP_MALFORMED:
			count(ACCEL_MALFORMED);
			return because(packet, REASON_MALFORMED, XDP_DROP);
		default:
			return because(packet, REASON_OTHER_PROTOCOL, XDP_PASS);
		}
	}
#endif
#ifdef DECAP_IPIP
	if (packet->flow.proto == IPPROTO_IPIP || packet->flow.proto == IPPROTO_IPV6) {
		int verdict = end_tunnel(ctx, packet, family);

		return verdict == NO_TUNNEL ? because(packet, REASON_OTHER_PROTOCOL, XDP_PASS) : verdict;
	}
#endif
	return because(packet, REASON_OTHER_PROTOCOL, XDP_PASS);
}

/* UDP to the port of GUE. Returns a verdict, or CONTINUES. */
static __always_inline int read_gue(struct xdp_md *ctx, const struct packet *packet, int family)
{
#ifdef DECAP_GUE
	if (packet->flow.proto == IPPROTO_UDP && packet->flow.dport == bpf_htons(GUE_PORT) && !is_error(packet)) {
		int verdict = end_tunnel(ctx, packet, family);

		return verdict == NO_TUNNEL ? CONTINUES : verdict;
	}
#endif
	return CONTINUES;
}

/* What could not be read to the end: dropped if it is for a VIP, the stack's if not. */
static __always_inline int drop_unfit(const struct packet *packet, enum parse_result result, int family)
{
	if (result != PARSE_NO_ADDRESSES && !is_addressed_to_vip(packet, result, family))
		return because(packet, REASON_NOT_A_VIP, XDP_PASS);
	count(ACCEL_MALFORMED);
	return because(packet, REASON_MALFORMED, XDP_DROP);
}

/* By mark or by the slow path. */
static __always_inline int balance_flow(struct xdp_md *ctx, struct packet *packet, const struct device *device,
					__u32 mark, int family)
{
#if USES_MARKS
	if (mark) {
		struct route route;

		if (is_tcp_edge(packet) || is_too_big(packet) || is_error(packet) || names_real(ctx, packet, family)) {
			count(ACCEL_INELIGIBLE);
		} else if (follow_mark(&route, packet, mark, family)) {
			note_reason(packet, REASON_BY_MARK);
			hide_source_port(packet, &route);
			return send_to_real(ctx, packet, device, &route, family);
		}
	}
#endif
	return slow_path(ctx, packet, device, mark, family);
}

static __always_inline int balance(struct xdp_md *ctx, struct packet *packet, const struct device *device, __u32 mark,
				   int family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	enum parse_result result =
		family == AF_INET ? read_ipv4(packet, data, data_end) : read_ipv6(packet, data, data_end);
	int verdict;

	if (result == PARSE_OTHER)
		return because(packet, REASON_OTHER_PROTOCOL, XDP_PASS);
	if (result == PARSE_OTHER_WHOLE) {
		verdict = read_other(ctx, packet, data, data_end, family);
		if (verdict != CONTINUES)
			return verdict;
	} else if (result != PARSE_OK) {
#ifdef HASH_FRAGMENTS
		if (is_whole_fragment(packet, data, data_end, family))
			return balance_fragment(ctx, packet, device, family);
#endif
		return drop_unfit(packet, result, family);
	}
	verdict = read_gue(ctx, packet, family);
	return verdict == CONTINUES ? balance_flow(ctx, packet, device, mark, family) : verdict;
}

/* Counts a frame by its verdict. What is no traffic of a VIP goes on to the next function of the chain. */
static __always_inline int finish(struct xdp_md *ctx, const struct packet *packet, int verdict)
{
#ifdef ENDS_TUNNELS
	/* What was inside begins from the start. After 33 times the kernel says no, and the rest is the stack's. */
	if (verdict == BALANCE_AGAIN) {
		count_bytes(STATS_XDP_TOTAL, packet->frame_bytes);
		bpf_tail_call_(MAP(subprograms), ctx, 0);
		capture(ctx, packet, XDP_PASS);
		count_bytes(STATS_XDP_PASS, packet->frame_bytes);
		return chain_next(ctx, XDP_PASS);
	}
#endif
	capture(ctx, packet, verdict);
	count_verdict(verdict, packet->frame_bytes);
	return verdict == XDP_PASS ? chain_next(ctx, verdict) : verdict;
}

int balancer_ingress(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct packet packet = {.frame_bytes = data_end - data};
	struct ethhdr *eth = data;
	const struct device *device = device_of(ctx);
	__u32 mark = carrier_mark(ctx);
	__be16 protocol;
	int verdict = XDP_PASS;

	if ((void *)(eth + 1) > data_end) {
		count(ACCEL_MALFORMED);
		capture_frame(ctx, REASON_MALFORMED, data_end - data, XDP_DROP);
		return count_verdict(XDP_DROP, data_end - data);
	}
	if (!device || !is_addressed(eth, device)) {
		capture_frame(ctx, REASON_NOT_ADDRESSED, data_end - data, XDP_PASS);
		return chain_next(ctx, XDP_PASS);
	}
	note_reason(&packet, REASON_OTHER_PROTOCOL);
	if (!read_ethertype(&packet, eth, data_end, &protocol))
		verdict = because(&packet, REASON_MALFORMED, XDP_DROP);
	else if (protocol == bpf_htons(ETH_P_IP))
		verdict = balance(ctx, &packet, device, mark, AF_INET);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		verdict = balance(ctx, &packet, device, mark, AF_INET6);
	return finish(ctx, &packet, verdict);
}
