// SPDX-License-Identifier: GPL-2.0-only
/*
 * softnic: a NIC in two XDP programs.
 *
 *   network ── wire ══► softnic_wire: match, count, drop or mark ══► port ── the host's interface
 *                  ◄══ softnic_port ◄════════════════════════════════
 *
 * The mark is in the metadata, which the redirect keeps. Rules are exact 5-tuples in a hash map, whose size is that of
 * the NIC's table.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "lib/carriers/metadata.h"
#include "lib/map_handle.h"
#include "lib/packet.h"

enum softnic_action {
	SOFTNIC_MARK = 1,
	SOFTNIC_DROP = 2,
};

enum softnic_counter {
	SOFTNIC_RECEIVED,
	SOFTNIC_MARKED,
	SOFTNIC_DROPPED,
	SOFTNIC_NO_ROOM, /* matched, but the frame had no room for the mark: passed on without */
	SOFTNIC_SENT,
	SOFTNIC_COUNTERS,
};

enum softnic_link {
	SOFTNIC_TO_PORT,
	SOFTNIC_TO_WIRE,
};

struct softnic_match {
	struct flow_key flow;
	__u32 family; /* 4 or 6 */
};

struct softnic_rule {
	__u32 action;
	__u32 mark;
	__u64 cookie;
	__u64 packets;
	__u64 bytes; /* of frames */
	__u64 last_used; /* ns, CLOCK_MONOTONIC; 0: never */
};

static __always_inline void count(enum softnic_counter which)
{
	__u32 slot = which;
	__u64 *counter = bpf_map_lookup_elem(MAP(softnic_stats), &slot);

	if (counter)
		*counter += 1;
}

/* The rule of a frame, or NULL. Frames with fragments, options or other protocols have none and pass unmarked. */
static __always_inline struct softnic_rule *find_rule(void *data, void *data_end)
{
	struct ethhdr *eth = data;
	struct packet packet = {};
	struct softnic_match match = {};
	enum parse_result result;

	if ((void *)(eth + 1) > data_end)
		return NULL;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		match.family = 4;
		result = read_ipv4(&packet, data, data_end);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		match.family = 6;
		result = read_ipv6(&packet, data, data_end);
	} else {
		return NULL;
	}
	if (result != PARSE_OK)
		return NULL;
	match.flow = packet.flow;
	return bpf_map_lookup_elem(MAP(softnic_rules), &match);
}

static __always_inline void push_mark(struct xdp_md *ctx, __u32 mark)
{
	struct xdp_md_mark *meta;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta))) {
		count(SOFTNIC_NO_ROOM);
		return;
	}
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return;
	meta->mark = mark;
	count(SOFTNIC_MARKED);
}

int softnic_wire(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct softnic_rule *rule = find_rule(data, data_end);

	count(SOFTNIC_RECEIVED);
	if (rule) {
		__sync_fetch_and_add(&rule->packets, 1);
		__sync_fetch_and_add(&rule->bytes, data_end - data);
		rule->last_used = bpf_ktime_get_ns();
		if (rule->action == SOFTNIC_DROP) {
			count(SOFTNIC_DROPPED);
			return XDP_DROP;
		}
		push_mark(ctx, rule->mark);
	}
	return bpf_redirect_map(MAP(softnic_links), SOFTNIC_TO_PORT, 0);
}

int softnic_port(struct xdp_md *ctx)
{
	count(SOFTNIC_SENT);
	return bpf_redirect_map(MAP(softnic_links), SOFTNIC_TO_WIRE, 0);
}
