/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps of health checks as published, so that others' tools read and write them, too. Addresses and ports are in
 * network byte order; an IPv4 address fills the first word, the rest is zero. Python has them in
 * plugins/katran_accel/healthcheck/layouts.py; a test compares the two.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/types.h>

#define HC_OUT_INTERFACE 3u /* slot of hc_ctrl_map: index of the interface by which probes leave */
#define HC_REAL_IPV6 1u

enum hc_source_slot {
	HC_SOURCE_IPV4 = 0,
	HC_SOURCE_IPV6 = 1,
};

enum hc_mac_slot {
	HC_MAC_SOURCE = 0,
	HC_MAC_DESTINATION = 1,
};

/* Values of hc_reals_map (by SO_MARK) and of hc_pckt_srcs_map. */
struct hc_address {
	__be32 addr[4];
	__u8 flags;
	__u8 pad[3];
};

struct hc_mac {
	__u8 mac[ETH_ALEN];
};

/* Key of hc_key_map; the value is an index of per_hckey_stats. */
struct hc_key {
	__be32 addr[4];
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct hc_stats {
	__u64 processed;
	__u64 dropped;
	__u64 skipped;
	__u64 too_big; /* this and what follows: of features that are not built here */
	__u64 dst_matched;
	__u64 src_matched;
};
