// SPDX-License-Identifier: GPL-2.0-only
/*
 * softnic: a NIC in two XDP programs.
 *
 *   network ── wire ══► softnic_wire: match, count, drop or mark ══► port ── the host's interface
 *                  ◄══ softnic_port ◄════════════════════════════════
 *
 * The mark is in the metadata, which the redirect keeps. Rules are in a hash map, whose size is that of the NIC's
 * table: exact 5-tuples, perhaps behind VLAN tags, and masked matches, whose keys say what they leave open. A frame is
 * looked up as it is, then, if it has no tags, once for each shape of masked rules.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "lib/carriers/metadata.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "lib/vlan.h"

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
	struct flow_key flow; /* pad: what the rule leaves open; 0 for one flow */
	__u32 family; /* 4 or 6 */
	__u16 vlans[MAX_VLAN_TAGS];
};

#define SOFTNIC_SHAPES 64

/* Rules that leave the same open. */
struct softnic_shape {
	struct flow_key mask; /* bits that count; pad: what is open, as in the keys of these rules */
	__u32 family; /* 0: not in use */
};

struct softnic_shapes {
	__u32 count; /* shapes from this one on are not in use */
	struct softnic_shape shape[SOFTNIC_SHAPES];
};

#define OPEN_PORTS 3 /* both flags for ports, in the third byte of pad */
#define MAX_EXTENSIONS 4

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

/* Addresses and protocol of any IPv4 packet. */
static __always_inline void read_ipv4_ends(struct flow_key *flow, void *data, void *data_end)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if ((void *)(ip + 1) > data_end)
		return;
	flow->src[0] = ip->saddr;
	flow->dst[0] = ip->daddr;
	flow->proto = ip->protocol;
}

static __always_inline int is_extension(__u8 header)
{
	return header == IPPROTO_HOPOPTS || header == IPPROTO_ROUTING || header == IPPROTO_DSTOPTS ||
	       header == IPPROTO_FRAGMENT;
}

/* Addresses of any IPv6 packet, and the protocol behind its extension headers. What follows a fragment header is the
 * protocol, whatever it is. */
static __always_inline void read_ipv6_ends(struct flow_key *flow, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	struct ipv6_opt_hdr *extension = (void *)(ip + 1);
	__u8 header;

	if ((void *)extension > data_end)
		return;
	__builtin_memcpy(flow->src, &ip->saddr, sizeof(flow->src));
	__builtin_memcpy(flow->dst, &ip->daddr, sizeof(flow->dst));
	header = ip->nexthdr;
	for (int i = 0; i < MAX_EXTENSIONS && is_extension(header); i++) {
		int last = header == IPPROTO_FRAGMENT;

		if ((void *)(extension + 1) > data_end)
			break;
		header = extension->nexthdr;
		if (last)
			break;
		extension = (void *)extension + (extension->hdrlen + 1) * 8;
	}
	flow->proto = header;
}

/* The masked rule of a frame, or NULL. Frames with unknown ports match only rules that leave both ports open. */
static __always_inline struct softnic_rule *find_masked(const struct softnic_match *frame, int has_ports,
							const struct softnic_shapes *shapes)
{
	const __u32 *words = (const __u32 *)&frame->flow;

	for (int i = 0; i < SOFTNIC_SHAPES; i++) {
		const struct softnic_shape *shape = &shapes->shape[i];
		const __u32 *mask = (const __u32 *)&shape->mask;
		struct softnic_match masked = {.family = frame->family};
		struct softnic_rule *rule;

		if (i >= shapes->count)
			break;
		if (shape->family != frame->family || (!has_ports && (shape->mask.pad[2] & OPEN_PORTS) != OPEN_PORTS))
			continue;
#pragma unroll
		for (int word = 0; word < 9; word++)
			((__u32 *)&masked.flow)[word] = words[word] & mask[word];
		masked.flow.proto = frame->flow.proto & shape->mask.proto;
		__builtin_memcpy(masked.flow.pad, shape->mask.pad, sizeof(masked.flow.pad));
		rule = bpf_map_lookup_elem(MAP(softnic_rules), &masked);
		if (rule)
			return rule;
	}
	return NULL;
}

/*
 * The rule of a frame, or NULL: such a frame passes unmarked. Ports are known of TCP and UDP without fragments, options
 * and extension headers.
 */
static __always_inline struct softnic_rule *find_rule(void *data, void *data_end)
{
	struct ethhdr *eth = data;
	struct packet packet = {};
	struct softnic_match match = {};
	struct softnic_shapes *shapes;
	struct softnic_rule *rule;
	enum parse_result result;
	__u32 first = 0;
	__be16 ethertype;

	if ((void *)(eth + 1) > data_end)
		return NULL;
	if (!read_vlan_tags(match.vlans, &data, data_end, &ethertype))
		return NULL;
	if (ethertype == bpf_htons(ETH_P_IP)) {
		match.family = 4;
		result = read_ipv4(&packet, data, data_end);
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		match.family = 6;
		result = read_ipv6(&packet, data, data_end);
	} else {
		return NULL;
	}
	if (result == PARSE_OK) {
		match.flow = packet.flow;
		rule = bpf_map_lookup_elem(MAP(softnic_rules), &match);
		if (rule)
			return rule;
	}
	shapes = bpf_map_lookup_elem(MAP(softnic_shapes), &first);
	if (!shapes || !shapes->count || match.vlans[0] || match.vlans[1])
		return NULL;
	if (result != PARSE_OK) {
		if (match.family == 4)
			read_ipv4_ends(&match.flow, data, data_end);
		else
			read_ipv6_ends(&match.flow, data, data_end);
	}
	return find_masked(&match, result == PARSE_OK, shapes);
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
