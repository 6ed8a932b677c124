// SPDX-License-Identifier: GPL-2.0-only
/* The NIC's table of flows. Its size is that of all NICs of this module, and can be changed at any time. */
#include <linux/module.h>
#include <linux/rtnetlink.h>

#include "simnic.h"

static unsigned int table_size = 65536;
module_param(table_size, uint, 0644);
MODULE_PARM_DESC(table_size, "rules that a NIC holds; one more is refused with ENOSPC");

static const struct rhashtable_params by_key = {
	.key_offset = offsetof(struct entry, key),
	.key_len = sizeof(struct flow_key),
	.head_offset = offsetof(struct entry, by_key),
	.automatic_shrinking = true,
};

static const struct rhashtable_params by_cookie = {
	.key_offset = offsetof(struct entry, cookie),
	.key_len = sizeof(unsigned long),
	.head_offset = offsetof(struct entry, by_cookie),
	.automatic_shrinking = true,
};

int table_init(struct table *table)
{
	int error = rhashtable_init(&table->by_key, &by_key);

	if (error)
		return error;
	error = rhashtable_init(&table->by_cookie, &by_cookie);
	if (error)
		rhashtable_destroy(&table->by_key);
	INIT_LIST_HEAD(&table->shapes);
	return error;
}

static void free_entry(void *entry, void *unused)
{
	kfree(entry);
}

/* Nobody looks into the table any more. */
void table_destroy(struct table *table)
{
	struct shape *shape, *next;

	rhashtable_destroy(&table->by_cookie);
	rhashtable_free_and_destroy(&table->by_key, free_entry, NULL);
	list_for_each_entry_safe(shape, next, &table->shapes, node) kfree(shape);
}

static void put_shape(struct shape *shape)
{
	if (!shape || --shape->rules)
		return;
	list_del_rcu(&shape->node);
	kfree_rcu(shape, rcu);
}

/* Finds or makes the shape of a mask. */
static int get_shape(struct table *table, struct entry *entry, const struct flow_key *mask)
{
	struct shape *shape;

	list_for_each_entry(shape, &table->shapes, node)
	{
		if (!memcmp(&shape->mask, mask, sizeof(*mask)))
			goto found;
	}
	shape = kzalloc(sizeof(*shape), GFP_KERNEL);
	if (!shape)
		return -ENOMEM;
	shape->mask = *mask;
	shape->number = ++table->last_shape;
	list_add_tail_rcu(&shape->node, &table->shapes);
found:
	shape->rules++;
	entry->shape = shape;
	entry->key.shape = shape->number;
	return 0;
}

static int insert(struct table *table, struct entry *entry, struct netlink_ext_ack *extack)
{
	int error;

	error = rhashtable_lookup_insert_fast(&table->by_key, &entry->by_key, by_key);
	if (error) {
		if (error == -EEXIST)
			NL_SET_ERR_MSG_MOD(extack, "there is a rule for this flow");
		return error;
	}
	error = rhashtable_lookup_insert_fast(&table->by_cookie, &entry->by_cookie, by_cookie);
	if (error) {
		/* A frame may have found it already. */
		rhashtable_remove_fast(&table->by_key, &entry->by_key, by_key);
		synchronize_rcu();
	}
	return error;
}

/*
 * Takes the entry over if it answers 0. Two rules for one flow are refused, as by NICs that cannot hold them. mask:
 * NULL for an exact rule.
 */
int table_add(struct table *table, struct entry *entry, const struct flow_key *mask, struct netlink_ext_ack *extack)
{
	int error;

	ASSERT_RTNL();
	if (table->count >= READ_ONCE(table_size)) {
		NL_SET_ERR_MSG_MOD(extack, "the table is full");
		return -ENOSPC;
	}
	error = mask ? get_shape(table, entry, mask) : 0;
	if (error)
		return error;
	error = insert(table, entry, extack);
	if (error)
		put_shape(entry->shape);
	else
		table->count++;
	return error;
}

static void take_out(struct table *table, struct entry *entry)
{
	rhashtable_remove_fast(&table->by_key, &entry->by_key, by_key);
	rhashtable_remove_fast(&table->by_cookie, &entry->by_cookie, by_cookie);
	table->count--;
	put_shape(entry->shape);
	kfree_rcu(entry, rcu);
}

int table_remove(struct table *table, unsigned long cookie)
{
	struct entry *entry;

	ASSERT_RTNL();
	entry = table_by_cookie(table, cookie);
	if (!entry)
		return -ENOENT;
	take_out(table, entry);
	return 0;
}

/* Forgets all rules, of which the kernel is not told. */
void table_flush(struct table *table)
{
	struct rhashtable_iter walk;
	struct entry *entry;

	ASSERT_RTNL();
	rhashtable_walk_enter(&table->by_key, &walk);
	rhashtable_walk_start(&walk);
	while ((entry = rhashtable_walk_next(&walk))) {
		/* -EAGAIN: the table was resized, and the walk begins again. */
		if (!IS_ERR(entry))
			take_out(table, entry);
	}
	rhashtable_walk_stop(&walk);
	rhashtable_walk_exit(&walk);
}

/* The entry stays as long as the caller holds RTNL. */
struct entry *table_by_cookie(struct table *table, unsigned long cookie)
{
	return rhashtable_lookup_fast(&table->by_cookie, &cookie, by_cookie);
}

/*
 * The entry stays until the caller's rcu_read_unlock(). The exact rule comes first, then the older shape. Without ports
 * only rules that match none are found.
 */
struct entry *table_by_key(struct table *table, const struct flow_key *key, bool has_ports)
{
	struct entry *entry = has_ports ? rhashtable_lookup(&table->by_key, key, by_key) : NULL;
	struct flow_key masked;
	struct shape *shape;

	if (entry)
		return entry;
	list_for_each_entry_rcu(shape, &table->shapes, node)
	{
		if (!has_ports && (shape->mask.sport || shape->mask.dport))
			continue;
		for (size_t i = 0; i < sizeof(masked) / sizeof(u32); i++)
			((u32 *)&masked)[i] = ((const u32 *)key)[i] & ((const u32 *)&shape->mask)[i];
		masked.shape = shape->number;
		entry = rhashtable_lookup(&table->by_key, &masked, by_key);
		if (entry)
			return entry;
	}
	return NULL;
}
