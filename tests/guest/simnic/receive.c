// SPDX-License-Identifier: GPL-2.0-only
/*
 * A frame's way in:
 *
 *	wire ─► arrived ─► a page ─► table ─► drop
 *	                               └────► mark in front of the frame ─► XDP ─► stack, wire, elsewhere
 */
#include <linux/bpf.h>
#include <linux/bpf_trace.h>
#include <linux/etherdevice.h>
#include <linux/filter.h>
#include <linux/if_vlan.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "simnic.h"

#define MAX_ARRIVED 4096
#define MAX_EXTENSIONS 4
#define MAX_TAGS 2
#define MAX_FRAME ((int)SKB_WITH_OVERHEAD(PAGE_SIZE - XDP_PACKET_HEADROOM))

struct tag {
	__be16 tci;
	__be16 behind; /* ethertype of what follows */
};

struct ports {
	__be16 source;
	__be16 dest;
};

/* Called by the wire: takes the frame, and leaves it to the NIC's next poll. */
netdev_tx_t arrive(struct nic *nic, struct sk_buff *frame)
{
	if (!netif_running(nic->dev) || frame->len > MAX_FRAME ||
	    skb_queue_len_lockless(&nic->arrived) >= MAX_ARRIVED) {
		dev_core_stats_rx_dropped_inc(nic->dev);
		kfree_skb(frame);
		return NETDEV_TX_OK;
	}
	skb_queue_tail(&nic->arrived, frame);
	napi_schedule(&nic->napi);
	return NETDEV_TX_OK;
}

/* Reads addresses and protocol; where the ports begin, NULL for a fragment and what is no IPv4. */
static const struct ports *parse_ipv4(const void *at, const void *end, struct flow_key *key)
{
	const struct iphdr *header = at;

	if (at + sizeof(*header) > end || header->ihl < 5)
		return NULL;
	key->family = 4;
	key->proto = header->protocol;
	key->src[0] = header->saddr;
	key->dst[0] = header->daddr;
	return ip_is_fragment(header) ? NULL : at + header->ihl * 4;
}

static bool is_extension(u8 header)
{
	return header == NEXTHDR_HOP || header == NEXTHDR_ROUTING || header == NEXTHDR_DEST ||
	       header == NEXTHDR_FRAGMENT;
}

/* Reads addresses, and the protocol behind extension headers; where the ports begin, NULL as above. */
static const struct ports *parse_ipv6(const void *at, const void *end, struct flow_key *key)
{
	const struct ipv6hdr *header = at;
	const struct ipv6_opt_hdr *extension;
	u8 next;

	if (at + sizeof(*header) > end)
		return NULL;
	key->family = 6;
	memcpy(key->src, &header->saddr, sizeof(key->src));
	memcpy(key->dst, &header->daddr, sizeof(key->dst));
	next = header->nexthdr;
	at += sizeof(*header);
	for (int i = 0; i < MAX_EXTENSIONS && is_extension(next) && at + sizeof(*extension) <= end; i++) {
		extension = at;
		key->proto = extension->nexthdr;
		if (next == NEXTHDR_FRAGMENT)
			return NULL;
		next = extension->nexthdr;
		at += ipv6_optlen(extension);
	}
	key->proto = next;
	return at;
}

/* Reads the VLAN tags; where the packet behind them begins, and its ethertype in `kind`: 0 if the frame ends before. */
static const void *parse_tags(const void *frame, const void *end, struct flow_key *key, __be16 *kind)
{
	const struct ethhdr *ethernet = frame;
	const struct tag *tag = frame + sizeof(*ethernet);

	*kind = ethernet->h_proto;
	for (int i = 0; i < MAX_TAGS && eth_type_vlan(*kind); i++, tag++) {
		if ((const void *)(tag + 1) > end) {
			*kind = 0;
			break;
		}
		key->vlans[i] = vlan_of(ntohs(tag->tci) & VLAN_VID_MASK, *kind);
		*kind = tag->behind;
	}
	return tag;
}

/* The rule for a frame, if there is one. */
static struct entry *classify(struct nic *nic, const void *frame, const void *end)
{
	const struct ports *ports = NULL;
	struct flow_key key = {};
	const void *packet;
	bool has_ports;
	__be16 kind;

	if (frame + sizeof(struct ethhdr) > end)
		return NULL;
	packet = parse_tags(frame, end, &key, &kind);
	if (kind == htons(ETH_P_IP))
		ports = parse_ipv4(packet, end, &key);
	else if (kind == htons(ETH_P_IPV6))
		ports = parse_ipv6(packet, end, &key);
	if (!key.family)
		return NULL;
	has_ports = ports && (const void *)(ports + 1) <= end && (key.proto == IPPROTO_TCP || key.proto == IPPROTO_UDP);
	if (has_ports) {
		key.sport = ports->source;
		key.dport = ports->dest;
	}
	return table_by_key(&nic->table, &key, has_ports);
}

static void count(struct entry *entry, u32 length)
{
	atomic64_inc(&entry->packets);
	atomic64_add(length, &entry->bytes);
	WRITE_ONCE(entry->last_used, jiffies);
}

/* An skb around the frame's page, which it takes over. */
static struct sk_buff *wrap(struct xdp_buff *xdp, struct net_device *dev)
{
	struct sk_buff *skb = build_skb(xdp->data_hard_start, PAGE_SIZE);

	if (!skb) {
		put_page(virt_to_page(xdp->data_hard_start));
		dev_core_stats_rx_dropped_inc(dev);
		return NULL;
	}
	skb_reserve(skb, xdp->data - xdp->data_hard_start);
	__skb_put(skb, xdp->data_end - xdp->data);
	return skb;
}

static void pass(struct nic *nic, struct xdp_buff *xdp, u32 mark)
{
	struct sk_buff *skb = wrap(xdp, nic->dev);

	if (!skb)
		return;
	if (xdp->data > xdp->data_meta)
		skb_metadata_set(skb, xdp->data - xdp->data_meta);
	skb->mark = mark;
	skb->protocol = eth_type_trans(skb, nic->dev);
	napi_gro_receive(&nic->napi, skb);
}

static void send_back(struct nic *nic, struct xdp_buff *xdp)
{
	struct net_device *wire = rcu_dereference(nic->end.peer);
	struct sk_buff *skb;

	if (!wire || !netif_running(wire)) {
		put_page(virt_to_page(xdp->data_hard_start));
		return;
	}
	skb = wrap(xdp, wire);
	if (!skb)
		return;
	dev_sw_netstats_tx_add(nic->dev, 1, skb->len);
	dev_sw_netstats_rx_add(wire, skb->len);
	skb->protocol = eth_type_trans(skb, wire);
	netif_receive_skb(skb);
}

/* Runs the program, if there is one, and does what it says; whether the frame was redirected. */
static bool deliver(struct nic *nic, struct xdp_buff *xdp, u32 mark)
{
	struct bpf_prog *prog = rcu_dereference(nic->prog);
	u32 verdict = prog ? bpf_prog_run_xdp(prog, xdp) : XDP_PASS;

	switch (verdict) {
	case XDP_PASS:
		pass(nic, xdp, mark);
		return false;
	case XDP_TX:
		send_back(nic, xdp);
		return false;
	case XDP_REDIRECT:
		if (!xdp_do_redirect(nic->dev, xdp, prog))
			return true;
		break;
	case XDP_DROP:
		break;
	default:
		bpf_warn_invalid_xdp_action(nic->dev, prog, verdict);
		fallthrough;
	case XDP_ABORTED:
		trace_xdp_exception(nic->dev, prog, verdict);
	}
	put_page(virt_to_page(xdp->data_hard_start));
	return false;
}

static bool receive(struct nic *nic, struct sk_buff *frame)
{
	struct page *page = dev_alloc_page();
	struct entry *entry;
	struct xdp_buff xdp;
	u32 *mark;

	if (!page) {
		dev_core_stats_rx_dropped_inc(nic->dev);
		kfree_skb(frame);
		return false;
	}
	xdp_init_buff(&xdp, PAGE_SIZE, &nic->rxq);
	xdp_prepare_buff(&xdp, page_address(page), XDP_PACKET_HEADROOM, frame->len, true);
	skb_copy_bits(frame, 0, xdp.data, frame->len);
	consume_skb(frame);
	dev_sw_netstats_rx_add(nic->dev, xdp.data_end - xdp.data);

	entry = classify(nic, xdp.data, xdp.data_end);
	if (entry)
		count(entry, xdp.data_end - xdp.data);
	if (entry && entry->drop) {
		put_page(page);
		return false;
	}
	mark = xdp.data - sizeof(*mark);
	*mark = entry ? entry->mark : 0;
	xdp.data_meta = mark;
	return deliver(nic, &xdp, *mark);
}

int receive_poll(struct napi_struct *napi, int budget)
{
	struct nic *nic = container_of(napi, struct nic, napi);
	bool redirected = false;
	struct sk_buff *frame;
	int done = 0;

	rcu_read_lock();
	while (done < budget && (frame = skb_dequeue(&nic->arrived))) {
		redirected |= receive(nic, frame);
		done++;
	}
	if (redirected)
		xdp_do_flush();
	rcu_read_unlock();
	if (done < budget)
		napi_complete_done(napi, done);
	return done;
}
