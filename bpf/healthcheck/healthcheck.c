// SPDX-License-Identifier: GPL-2.0-only
/*
 * At the egress of the interface by which health checks leave: a packet whose socket has the mark (SO_MARK) of a real
 * gets an outer header to that real, and so checks it by the way that the balancer's packets take. All others go on
 * untouched. Build choices: GUE_PORT; KERNEL_NEXT_HOP: the kernel sends the packet by its own routes and neighbours to the
 * real, instead of to the MAC address of hc_pckt_macs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include "abi.h"
#include "lib/map_handle.h"
#include "outer.h"
#include "probe_key.h"

static __always_inline int encap(struct __sk_buff *skb, const struct hc_address *real)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	return real->flags & HC_REAL_IPV6 ? encap_in_ipv6(skb, real) : encap_in_ipv4(skb, real);
}

int healthcheck_encap(struct __sk_buff *skb)
{
	__u32 zero = 0, out = HC_OUT_INTERFACE, mark = skb->mark, *interface;
	struct hc_stats *stats = bpf_map_lookup_elem(MAP(hc_stats_map), &zero);
	struct hc_key key = {};
	struct hc_address *real;
	int has_key;

	if (!stats)
		return TC_ACT_UNSPEC;
	real = mark ? bpf_map_lookup_elem(MAP(hc_reals_map), &mark) : NULL;
	if (!real) {
		stats->skipped++;
		return TC_ACT_UNSPEC;
	}
	interface = bpf_map_lookup_elem(MAP(hc_ctrl_map), &out);
	has_key = read_probe_key(skb, &key);
	if (!interface || !*interface || !encap(skb, real)) {
		stats->dropped++;
		return TC_ACT_SHOT;
	}
	/* Without the mark: the packet comes here again if it leaves by the same interface. */
	skb->mark = 0;
	stats->processed++;
	if (has_key)
		count_probe(&key);
	return send(*interface);
}
