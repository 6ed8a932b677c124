/* SPDX-License-Identifier: GPL-2.0-only */
/* Counts probes by what they check: destination, port and protocol. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "abi.h"
#include "lib/map_handle.h"
#include "lib/packet.h"

#define PORT_OF_DESTINATION 2 /* bytes into TCP's and UDP's header */

/* Reads the key of a probe that has no outer header yet; 0 when it is neither TCP nor UDP. */
static __always_inline int read_probe_key(struct __sk_buff *skb, struct hc_key *key)
{
	__u32 l4 = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr ip6;
	struct iphdr ip;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return 0;
		/* Only the first fragment has ports. */
		if (ip.ihl < 5 || ip.frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET))
			return 0;
		key->addr[0] = ip.daddr;
		key->proto = ip.protocol;
		l4 = ETH_HLEN + ip.ihl * 4;
	} else {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip6, sizeof(ip6)))
			return 0;
		__builtin_memcpy(key->addr, &ip6.daddr, sizeof(key->addr));
		key->proto = ip6.nexthdr;
	}
	if (key->proto != IPPROTO_TCP && key->proto != IPPROTO_UDP)
		return 0;
	return !bpf_skb_load_bytes(skb, l4 + PORT_OF_DESTINATION, &key->port, sizeof(key->port));
}

static __always_inline void count_probe(const struct hc_key *key)
{
	__u32 *index = bpf_map_lookup_elem(MAP(hc_key_map), key);
	__u64 *count = index ? bpf_map_lookup_elem(MAP(per_hckey_stats), index) : NULL;

	if (count)
		(*count)++;
}
