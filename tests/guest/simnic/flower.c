// SPDX-License-Identifier: GPL-2.0-only
/* From tc's flower to the table: exact 5-tuples with the actions mark, drop and pass; words for all else. */
#include <linux/module.h>
#include <linux/string.h>
#include <net/pkt_cls.h>

#include "simnic.h"

#define KEYS_NEEDED                                                                                                    \
	(BIT_ULL(FLOW_DISSECTOR_KEY_CONTROL) | BIT_ULL(FLOW_DISSECTOR_KEY_BASIC) | BIT_ULL(FLOW_DISSECTOR_KEY_PORTS))
/* Flower's addresses are a union, so that a match on either family uses both keys: the ethertype tells which it is. */
#define KEYS_OF_ADDRESSES (BIT_ULL(FLOW_DISSECTOR_KEY_IPV4_ADDRS) | BIT_ULL(FLOW_DISSECTOR_KEY_IPV6_ADDRS))

static unsigned int mark_bits = 32;
module_param(mark_bits, uint, 0644);
MODULE_PARM_DESC(mark_bits, "width of marks: wider ones are refused");

static bool ipv6 = true;
module_param(ipv6, bool, 0644);
MODULE_PARM_DESC(ipv6, "whether rules for IPv6 are taken");

static LIST_HEAD(blocks);

static int refuse(struct netlink_ext_ack *extack, const char *words)
{
	NL_SET_ERR_MSG_FMT_MOD(extack, "%s", words);
	return -EOPNOTSUPP;
}

/* A mask that leaves out a bit is one that this NIC lacks. */
static bool is_exact(const void *mask, size_t size)
{
	return !memchr_inv(mask, 0xff, size);
}

static bool read_ipv4(const struct flow_rule *rule, struct flow_key *key)
{
	struct flow_match_ipv4_addrs match;

	flow_rule_match_ipv4_addrs(rule, &match);
	key->family = 4;
	key->src[0] = match.key->src;
	key->dst[0] = match.key->dst;
	return is_exact(match.mask, sizeof(*match.mask));
}

static bool read_ipv6(const struct flow_rule *rule, struct flow_key *key)
{
	struct flow_match_ipv6_addrs match;

	flow_rule_match_ipv6_addrs(rule, &match);
	key->family = 6;
	memcpy(key->src, &match.key->src, sizeof(key->src));
	memcpy(key->dst, &match.key->dst, sizeof(key->dst));
	return is_exact(match.mask, sizeof(*match.mask));
}

static bool read_ports(const struct flow_rule *rule, struct flow_key *key)
{
	struct flow_match_ports match;

	flow_rule_match_ports(rule, &match);
	key->sport = match.key->src;
	key->dport = match.key->dst;
	return is_exact(match.mask, sizeof(*match.mask));
}

static int read_key(struct flow_rule *rule, struct flow_key *key, struct netlink_ext_ack *extack)
{
	u64 keys = rule->match.dissector->used_keys;
	struct flow_match_basic basic;
	bool exact;

	if ((keys & KEYS_NEEDED) != KEYS_NEEDED || (keys & KEYS_OF_ADDRESSES) != KEYS_OF_ADDRESSES ||
	    keys & ~(KEYS_NEEDED | KEYS_OF_ADDRESSES))
		return refuse(extack, "a rule must match addresses and ports, and nothing else");
	if (flow_rule_match_has_control_flags(rule, extack))
		return -EOPNOTSUPP;
	flow_rule_match_basic(rule, &basic);
	if (basic.key->n_proto != htons(ETH_P_IP) && basic.key->n_proto != htons(ETH_P_IPV6))
		return refuse(extack, "only IPv4 and IPv6 are matched");
	if (basic.key->n_proto == htons(ETH_P_IPV6) && !READ_ONCE(ipv6))
		return refuse(extack, "IPv6 is not matched");
	if (basic.key->ip_proto != IPPROTO_TCP && basic.key->ip_proto != IPPROTO_UDP)
		return refuse(extack, "only TCP and UDP are matched");
	key->proto = basic.key->ip_proto;
	exact = basic.key->n_proto == htons(ETH_P_IP) ? read_ipv4(rule, key) : read_ipv6(rule, key);
	if (!exact || !read_ports(rule, key))
		return refuse(extack, "addresses and ports are matched as a whole, without masks");
	return 0;
}

static int read_actions(const struct flow_rule *rule, struct entry *entry, struct netlink_ext_ack *extack)
{
	const struct flow_action_entry *action;

	if (!flow_action_basic_hw_stats_check(&rule->action, extack))
		return -EOPNOTSUPP;
	for (unsigned int i = 0; i < rule->action.num_entries; i++) {
		action = &rule->action.entries[i];
		switch (action->id) {
		case FLOW_ACTION_MARK:
			if ((u64)action->mark >> READ_ONCE(mark_bits))
				return refuse(extack, "the mark is too wide");
			entry->mark = action->mark;
			break;
		case FLOW_ACTION_DROP:
			entry->drop = true;
			break;
		case FLOW_ACTION_ACCEPT:
			break;
		default:
			return refuse(extack, "the only actions are skbedit mark, drop and pass");
		}
	}
	return 0;
}

static int add_rule(struct nic *nic, struct flow_cls_offload *asked)
{
	struct flow_rule *rule = flow_cls_offload_flow_rule(asked);
	struct netlink_ext_ack *extack = asked->common.extack;
	struct entry *entry;
	int error;

	entry = kzalloc(sizeof(*entry), GFP_KERNEL);
	if (!entry)
		return -ENOMEM;
	entry->cookie = asked->cookie;
	entry->last_used = jiffies;
	error = read_key(rule, &entry->key, extack);
	if (!error)
		error = read_actions(rule, entry, extack);
	if (!error)
		error = table_add(&nic->table, entry, extack);
	if (error)
		kfree(entry);
	return error;
}

static int tell_counters(struct nic *nic, struct flow_cls_offload *asked)
{
	struct entry *entry = table_by_cookie(&nic->table, asked->cookie);
	u64 packets, bytes;

	if (!entry)
		return -ENOENT;
	packets = atomic64_read(&entry->packets);
	bytes = atomic64_read(&entry->bytes);
	flow_stats_update(&asked->stats, bytes - entry->told_bytes, packets - entry->told_packets, 0,
			  READ_ONCE(entry->last_used), FLOW_ACTION_HW_STATS_IMMEDIATE);
	entry->told_packets = packets;
	entry->told_bytes = bytes;
	return 0;
}

static int serve_block(enum tc_setup_type type, void *data, void *private)
{
	struct flow_cls_offload *asked = data;
	struct nic *nic = private;

	if (type != TC_SETUP_CLSFLOWER)
		return -EOPNOTSUPP;
	if (!tc_cls_can_offload_and_chain0(nic->dev, &asked->common))
		return -EOPNOTSUPP;
	switch (asked->command) {
	case FLOW_CLS_REPLACE:
		return add_rule(nic, asked);
	case FLOW_CLS_DESTROY:
		return table_remove(&nic->table, asked->cookie);
	case FLOW_CLS_STATS:
		return tell_counters(nic, asked);
	default:
		return -EOPNOTSUPP;
	}
}

/* The table is in front of what the NIC receives: ingress alone. */
int flower_setup(struct nic *nic, struct flow_block_offload *block)
{
	return flow_block_cb_setup_simple(block, &blocks, serve_block, nic, nic, true);
}
