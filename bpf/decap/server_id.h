/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Built with SERVER_ID: counts TCP packets whose server id is this server's, and those that another one should have
 * got. Such packets are passed all the same. A SYN has no id yet that counts.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "counters.h"
#include "lib/map_handle.h"
#include "lib/packet.h"
#include "lib/tcp_server_id.h"

/* The TCP header of a frame, NULL when it has none at the usual place. */
static __always_inline void *tcp_header(void *data, void *data_end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct ipv6hdr *ip6 = data + sizeof(*eth);

	if ((void *)(ip + 1) > data_end)
		return NULL;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (ip->protocol != IPPROTO_TCP || ip->ihl != 5 || ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET))
			return NULL;
		return ip + 1;
	}
	if ((void *)(ip6 + 1) > data_end || ip6->nexthdr != IPPROTO_TCP)
		return NULL;
	return ip6 + 1;
}

static __always_inline void check_server_id(void *data, void *data_end)
{
	__u8 *tcp = tcp_header(data, data_end);
	__u32 key = 0, *own, id;

	if (!tcp || (void *)(tcp + TCP_HEADER_BYTES) > data_end || tcp[TCP_FLAGS_BYTE] & TCP_FLAG_SYN)
		return;
	own = bpf_map_lookup_elem(MAP(tpr_server_id), &key);
	if (!own || !*own)
		return;
	id = tcp_server_id(tcp, data_end);
	if (id)
		count_server_id(id != *own);
}
