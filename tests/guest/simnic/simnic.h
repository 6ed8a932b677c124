/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * simnic: a NIC that exists in software alone, with a table of flows that tc's flower fills.
 *
 *	device.c	the two network devices: the NIC, and its wire
 *	flower.c	what the kernel asks of the table, translated or refused
 *	table.c		the table: exact 5-tuples and masked ones, found by key or by cookie
 *	receive.c	a frame from the wire: classified, marked, shown to XDP
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/netdevice.h>
#include <linux/rhashtable.h>
#include <linux/skbuff.h>
#include <linux/types.h>
#include <net/flow_offload.h>
#include <net/xdp.h>

/* Compared and hashed as bytes: no padding, unused words are 0. All in network byte order but the first three. */
struct flow_key {
	u32 shape; /* 0: exact; else the number of the rule's shape */
	u16 family; /* 4 or 6 */
	u16 proto;
	__be16 sport;
	__be16 dport;
	__be32 src[4]; /* IPv4: the first word */
	__be32 dst[4];
	u16 vlans[2]; /* the outer tag first, as of vlan_of(); 0: none */
};

#define SERVICE_TAG 0x1000

/* A VLAN tag as a rule has it: its id, and whether its TPID is 802.1ad's. */
static inline u16 vlan_of(u16 id, __be16 tpid)
{
	return tpid == htons(ETH_P_8021AD) ? id | SERVICE_TAG : id;
}

/* Rules with the same mask: one look-up for all of them. */
struct shape {
	struct list_head node;
	struct flow_key mask; /* bits of the key that count */
	u32 number;
	unsigned int rules;
	struct rcu_head rcu;
};

struct entry {
	struct rhash_head by_key;
	struct rhash_head by_cookie;
	struct flow_key key;
	struct shape *shape; /* NULL: exact */
	unsigned long cookie; /* of the filter, given by the kernel */
	u32 mark; /* 0: none */
	bool drop;
	atomic64_t packets;
	atomic64_t bytes; /* of frames */
	u64 told_packets; /* what the kernel has heard of: it wants differences */
	u64 told_bytes;
	unsigned long last_used; /* jiffies */
	struct rcu_head rcu;
};

/* Changed under RTNL, read under RCU. */
struct table {
	struct rhashtable by_key;
	struct rhashtable by_cookie;
	struct list_head shapes;
	u32 last_shape;
	unsigned int count;
};

/* Begins the private part of both devices. Cleared before either of them goes. */
struct end {
	struct net_device __rcu *peer;
};

struct nic {
	struct end end;
	struct net_device *dev;
	struct table table;
	struct bpf_prog __rcu *prog;
	struct napi_struct napi;
	struct xdp_rxq_info rxq;
	struct sk_buff_head arrived; /* frames that the wire brought */
};

int table_init(struct table *table);
void table_destroy(struct table *table);
int table_add(struct table *table, struct entry *entry, const struct flow_key *mask, struct netlink_ext_ack *extack);
int table_remove(struct table *table, unsigned long cookie);
void table_flush(struct table *table);
struct entry *table_by_cookie(struct table *table, unsigned long cookie);
struct entry *table_by_key(struct table *table, const struct flow_key *key, bool has_ports);

int flower_setup(struct nic *nic, struct flow_block_offload *block);

netdev_tx_t arrive(struct nic *nic, struct sk_buff *frame);
int receive_poll(struct napi_struct *napi, int budget);
