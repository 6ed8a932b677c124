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
	return error;
}

static void free_entry(void *entry, void *unused)
{
	kfree(entry);
}

/* Nobody looks into the table any more. */
void table_destroy(struct table *table)
{
	rhashtable_destroy(&table->by_cookie);
	rhashtable_free_and_destroy(&table->by_key, free_entry, NULL);
}

/* Takes the entry over if it answers 0. Two rules for one flow are refused, as by NICs that cannot hold them. */
int table_add(struct table *table, struct entry *entry, struct netlink_ext_ack *extack)
{
	int error;

	ASSERT_RTNL();
	if (table->count >= READ_ONCE(table_size)) {
		NL_SET_ERR_MSG_MOD(extack, "the table is full");
		return -ENOSPC;
	}
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
		return error;
	}
	table->count++;
	return 0;
}

static void take_out(struct table *table, struct entry *entry)
{
	rhashtable_remove_fast(&table->by_key, &entry->by_key, by_key);
	rhashtable_remove_fast(&table->by_cookie, &entry->by_cookie, by_cookie);
	table->count--;
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

/* The entry stays until the caller's rcu_read_unlock(). */
struct entry *table_by_key(struct table *table, const struct flow_key *key)
{
	return rhashtable_lookup(&table->by_key, key, by_key);
}
