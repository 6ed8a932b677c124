// SPDX-License-Identifier: GPL-2.0-only
/*
 * From tc's flower to the table: 5-tuples, perhaps masked or behind VLAN tags, with the actions mark, drop and pass;
 * words for all else.
 */
#include <linux/if_vlan.h>
#include <linux/module.h>
#include <linux/string.h>
#include <net/pkt_cls.h>

#include "simnic.h"

#define KEYS_NEEDED (BIT_ULL(FLOW_DISSECTOR_KEY_CONTROL) | BIT_ULL(FLOW_DISSECTOR_KEY_BASIC))
#define KEY_OF_PORTS BIT_ULL(FLOW_DISSECTOR_KEY_PORTS)
#define KEYS_OF_TAGS (BIT_ULL(FLOW_DISSECTOR_KEY_VLAN) | BIT_ULL(FLOW_DISSECTOR_KEY_CVLAN))
/* Flower's addresses are a union, so that a match on either family uses both keys: the ethertype tells which it is. */
#define KEYS_OF_ADDRESSES (BIT_ULL(FLOW_DISSECTOR_KEY_IPV4_ADDRS) | BIT_ULL(FLOW_DISSECTOR_KEY_IPV6_ADDRS))

static unsigned int mark_bits = 32;
module_param(mark_bits, uint, 0644);
MODULE_PARM_DESC(mark_bits, "width of marks: wider ones are refused");

static bool ipv6 = true;
module_param(ipv6, bool, 0644);
MODULE_PARM_DESC(ipv6, "whether rules for IPv6 are taken");

static bool masks = true;
module_param(masks, bool, 0644);
MODULE_PARM_DESC(masks, "whether rules may leave out bits and fields");

static bool drops = true;
module_param(drops, bool, 0644);
MODULE_PARM_DESC(drops, "whether rules may drop");

static bool vlans = true;
module_param(vlans, bool, 0644);
MODULE_PARM_DESC(vlans, "whether rules may match VLAN tags");

static LIST_HEAD(blocks);

static int refuse(struct netlink_ext_ack *extack, const char *words)
{
	NL_SET_ERR_MSG_FMT_MOD(extack, "%s", words);
	return -EOPNOTSUPP;
}

/* The address keys are there only if one of their bits is matched. */
static void read_ipv4(const struct flow_rule *rule, struct flow_key *key, struct flow_key *mask)
{
	struct flow_match_ipv4_addrs match;

	if (!flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_IPV4_ADDRS))
		return;
	flow_rule_match_ipv4_addrs(rule, &match);
	mask->src[0] = match.mask->src;
	mask->dst[0] = match.mask->dst;
	key->src[0] = match.key->src & match.mask->src;
	key->dst[0] = match.key->dst & match.mask->dst;
}

static void read_ipv6(const struct flow_rule *rule, struct flow_key *key, struct flow_key *mask)
{
	struct flow_match_ipv6_addrs match;

	if (!flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_IPV6_ADDRS))
		return;
	flow_rule_match_ipv6_addrs(rule, &match);
	for (int i = 0; i < 4; i++) {
		mask->src[i] = match.mask->src.s6_addr32[i];
		mask->dst[i] = match.mask->dst.s6_addr32[i];
		key->src[i] = match.key->src.s6_addr32[i] & mask->src[i];
		key->dst[i] = match.key->dst.s6_addr32[i] & mask->dst[i];
	}
}

static void read_ports(const struct flow_rule *rule, struct flow_key *key, struct flow_key *mask)
{
	struct flow_match_ports match;

	if (!flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_PORTS))
		return;
	flow_rule_match_ports(rule, &match);
	mask->sport = match.mask->src;
	mask->dport = match.mask->dst;
	key->sport = match.key->src & match.mask->src;
	key->dport = match.key->dst & match.mask->dst;
}

static int read_tag(const struct flow_match_vlan *match, u16 *vlan, struct netlink_ext_ack *extack)
{
	if (match->mask->vlan_id != VLAN_VID_MASK || match->mask->vlan_priority || match->mask->vlan_dei)
		return refuse(extack, "of a VLAN tag the id is matched, as a whole, and nothing else");
	*vlan = vlan_of(match->key->vlan_id, match->key->vlan_tpid);
	return 0;
}

/* A rule without tags is for frames without: the tags count in any case. */
static int read_tags(const struct flow_rule *rule, struct flow_key *key, struct flow_key *mask,
		     struct netlink_ext_ack *extack)
{
	struct flow_match_vlan match;
	int error = 0;

	memset(mask->vlans, 0xff, sizeof(mask->vlans));
	if (rule->match.dissector->used_keys & KEYS_OF_TAGS && !READ_ONCE(vlans))
		return refuse(extack, "VLAN tags are not matched");
	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_VLAN)) {
		flow_rule_match_vlan(rule, &match);
		error = read_tag(&match, &key->vlans[0], extack);
	}
	if (!error && flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_CVLAN)) {
		flow_rule_match_cvlan(rule, &match);
		error = read_tag(&match, &key->vlans[1], extack);
	}
	return error;
}

/* Whether all that frames are looked up by counts. */
static bool is_exact(const struct flow_key *mask, u16 family)
{
	struct flow_key whole = {.family = ~0, .proto = ~0, .sport = ~0, .dport = ~0, .vlans = {~0, ~0}};
	size_t length = family == 4 ? 4 : 16;

	memset(whole.src, 0xff, length);
	memset(whole.dst, 0xff, length);
	return !memcmp(mask, &whole, sizeof(whole));
}

static int read_key(struct flow_rule *rule, struct flow_key *key, struct flow_key *mask, struct netlink_ext_ack *extack)
{
	u64 keys = rule->match.dissector->used_keys;
	struct flow_match_basic basic;
	int error;

	if ((keys & KEYS_NEEDED) != KEYS_NEEDED ||
	    keys & ~(KEYS_NEEDED | KEYS_OF_ADDRESSES | KEY_OF_PORTS | KEYS_OF_TAGS))
		return refuse(extack, "only addresses, ports, the protocol and VLAN tags are matched");
	if (flow_rule_match_has_control_flags(rule, extack))
		return -EOPNOTSUPP;
	flow_rule_match_basic(rule, &basic);
	if (basic.key->n_proto != htons(ETH_P_IP) && basic.key->n_proto != htons(ETH_P_IPV6))
		return refuse(extack, "only IPv4 and IPv6 are matched");
	if (basic.key->n_proto == htons(ETH_P_IPV6) && !READ_ONCE(ipv6))
		return refuse(extack, "IPv6 is not matched");
	key->family = basic.key->n_proto == htons(ETH_P_IP) ? 4 : 6;
	mask->family = ~0;
	if (basic.mask->ip_proto) {
		key->proto = basic.key->ip_proto;
		mask->proto = ~0;
	}
	if (key->family == 4)
		read_ipv4(rule, key, mask);
	else
		read_ipv6(rule, key, mask);
	read_ports(rule, key, mask);
	error = read_tags(rule, key, mask, extack);
	if (error)
		return error;
	if ((mask->sport || mask->dport) && key->proto != IPPROTO_TCP && key->proto != IPPROTO_UDP)
		return refuse(extack, "only ports of TCP and UDP are matched");
	if (!READ_ONCE(masks) && !is_exact(mask, key->family))
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
			if (!READ_ONCE(drops))
				return refuse(extack, "dropping is not offloaded");
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
	struct flow_key mask = {};
	struct entry *entry;
	int error;

	entry = kzalloc(sizeof(*entry), GFP_KERNEL);
	if (!entry)
		return -ENOMEM;
	entry->cookie = asked->cookie;
	entry->last_used = jiffies;
	error = read_key(rule, &entry->key, &mask, extack);
	if (!error)
		error = read_actions(rule, entry, extack);
	if (!error)
		error = table_add(&nic->table, entry, is_exact(&mask, entry->key.family) ? NULL : &mask, extack);
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
