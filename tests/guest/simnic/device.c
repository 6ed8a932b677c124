// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two devices for one NIC:
 *
 *	ip link add sim0 type simnic
 *
 * makes sim0, the NIC, and sim0w, its wire: what one sends the other receives. The wire is a plain device that
 * may move to another network namespace; removing either removes both.
 */
#include <linux/bpf.h>
#include <linux/etherdevice.h>
#include <linux/filter.h>
#include <linux/module.h>
#include <net/rtnetlink.h>

#include "simnic.h"

#define MAX_MTU 3000 /* with everything around it, a frame fits into a page */

static netdev_tx_t nic_transmit(struct sk_buff *frame, struct net_device *dev)
{
	struct nic *nic = netdev_priv(dev);
	unsigned int length = frame->len;
	struct net_device *wire;

	rcu_read_lock();
	wire = rcu_dereference(nic->end.peer);
	if (!wire) {
		kfree_skb(frame);
	} else if (dev_forward_skb(wire, frame) == NET_RX_SUCCESS) {
		dev_sw_netstats_tx_add(dev, 1, length);
		dev_sw_netstats_rx_add(wire, length);
	} else {
		dev_core_stats_tx_dropped_inc(dev);
	}
	rcu_read_unlock();
	return NETDEV_TX_OK;
}

static netdev_tx_t wire_transmit(struct sk_buff *frame, struct net_device *dev)
{
	struct end *end = netdev_priv(dev);
	struct net_device *nic;

	rcu_read_lock();
	nic = rcu_dereference(end->peer);
	if (nic) {
		dev_sw_netstats_tx_add(dev, 1, frame->len);
		skb_tx_timestamp(frame);
		arrive(netdev_priv(nic), frame);
	} else {
		kfree_skb(frame);
	}
	rcu_read_unlock();
	return NETDEV_TX_OK;
}

static int nic_init(struct net_device *dev)
{
	struct nic *nic = netdev_priv(dev);

	nic->dev = dev;
	skb_queue_head_init(&nic->arrived);
	netif_napi_add(dev, &nic->napi, receive_poll);
	return table_init(&nic->table);
}

static void nic_uninit(struct net_device *dev)
{
	struct nic *nic = netdev_priv(dev);

	netif_napi_del(&nic->napi);
	/* The last frames of the wire may have come after the purge, and may still look into the table. */
	synchronize_net();
	skb_queue_purge(&nic->arrived);
	table_destroy(&nic->table);
}

static int nic_open(struct net_device *dev)
{
	struct nic *nic = netdev_priv(dev);
	int error;

	error = xdp_rxq_info_reg(&nic->rxq, dev, 0, nic->napi.napi_id);
	if (error)
		return error;
	error = xdp_rxq_info_reg_mem_model(&nic->rxq, MEM_TYPE_PAGE_ORDER0, NULL);
	if (error) {
		xdp_rxq_info_unreg(&nic->rxq);
		return error;
	}
	napi_enable(&nic->napi);
	return 0;
}

static int nic_stop(struct net_device *dev)
{
	struct nic *nic = netdev_priv(dev);

	napi_disable(&nic->napi);
	skb_queue_purge(&nic->arrived);
	xdp_rxq_info_unreg(&nic->rxq);
	return 0;
}

static int nic_setup_tc(struct net_device *dev, enum tc_setup_type type, void *data)
{
	return type == TC_SETUP_BLOCK ? flower_setup(netdev_priv(dev), data) : -EOPNOTSUPP;
}

/* Without its offload the NIC forgets its rules, as drivers do. */
static int nic_set_features(struct net_device *dev, netdev_features_t features)
{
	struct nic *nic = netdev_priv(dev);

	if (!(features & NETIF_F_HW_TC))
		table_flush(&nic->table);
	return 0;
}

static int nic_bpf(struct net_device *dev, struct netdev_bpf *asked)
{
	struct nic *nic = netdev_priv(dev);
	struct bpf_prog *old;

	if (asked->command != XDP_SETUP_PROG)
		return -EINVAL;
	old = rtnl_dereference(nic->prog);
	rcu_assign_pointer(nic->prog, asked->prog);
	if (old)
		bpf_prog_put(old);
	return 0;
}

static const struct net_device_ops nic_ops = {
	.ndo_init = nic_init,
	.ndo_uninit = nic_uninit,
	.ndo_open = nic_open,
	.ndo_stop = nic_stop,
	.ndo_start_xmit = nic_transmit,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
	.ndo_setup_tc = nic_setup_tc,
	.ndo_set_features = nic_set_features,
	.ndo_bpf = nic_bpf,
};

static const struct net_device_ops wire_ops = {
	.ndo_start_xmit = wire_transmit,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
};

static void setup_either(struct net_device *dev)
{
	ether_setup(dev);
	dev->needs_free_netdev = true;
	dev->pcpu_stat_type = NETDEV_PCPU_STAT_TSTATS;
	dev->priv_flags |= IFF_LIVE_ADDR_CHANGE | IFF_NO_QUEUE;
	dev->max_mtu = MAX_MTU;
	eth_hw_addr_random(dev);
}

static void setup_nic(struct net_device *dev)
{
	setup_either(dev);
	dev->netdev_ops = &nic_ops;
	dev->hw_features = NETIF_F_HW_TC;
	dev->features = NETIF_F_HW_TC;
	dev->xdp_features = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT;
}

static void setup_wire(struct net_device *dev)
{
	setup_either(dev);
	dev->netdev_ops = &wire_ops;
}

static struct rtnl_link_ops simnic_ops;

static int register_wire(struct net_device *dev, struct netlink_ext_ack *extack)
{
	struct net_device *wire;
	char name[IFNAMSIZ];
	struct end *end;
	int error;

	if (snprintf(name, sizeof(name), "%sw", dev->name) >= sizeof(name)) {
		NL_SET_ERR_MSG_MOD(extack, "the name leaves no room for the wire's");
		return -EINVAL;
	}
	wire = alloc_netdev(sizeof(struct end), name, NET_NAME_USER, setup_wire);
	if (!wire)
		return -ENOMEM;
	dev_net_set(wire, dev_net(dev));
	wire->rtnl_link_ops = &simnic_ops;
	error = register_netdevice(wire);
	if (error) {
		NL_SET_ERR_MSG_MOD(extack, "the wire's name is taken");
		free_netdev(wire);
		return error;
	}
	end = netdev_priv(wire);
	rcu_assign_pointer(end->peer, dev);
	end = netdev_priv(dev);
	rcu_assign_pointer(end->peer, wire);
	return 0;
}

static int simnic_newlink(struct net *source, struct net_device *dev, struct nlattr *attributes[],
			  struct nlattr *data[], struct netlink_ext_ack *extack)
{
	int error = register_netdevice(dev);

	if (error)
		return error;
	error = register_wire(dev, extack);
	if (error)
		unregister_netdevice(dev);
	return error;
}

static void simnic_dellink(struct net_device *dev, struct list_head *going)
{
	struct end *end = netdev_priv(dev);
	struct net_device *peer = rtnl_dereference(end->peer);

	unregister_netdevice_queue(dev, going);
	if (!peer)
		return;
	RCU_INIT_POINTER(end->peer, NULL);
	end = netdev_priv(peer);
	RCU_INIT_POINTER(end->peer, NULL);
	unregister_netdevice_queue(peer, going);
}

static struct rtnl_link_ops simnic_ops = {
	.kind = "simnic",
	.priv_size = sizeof(struct nic),
	.setup = setup_nic,
	.newlink = simnic_newlink,
	.dellink = simnic_dellink,
};

static int __init simnic_load(void)
{
	return rtnl_link_register(&simnic_ops);
}

static void __exit simnic_unload(void)
{
	rtnl_link_unregister(&simnic_ops);
	rcu_barrier();
}

module_init(simnic_load);
module_exit(simnic_unload);
MODULE_ALIAS_RTNL_LINK("simnic");
MODULE_DESCRIPTION("Simulated NIC with a table of flows for tc flower");
MODULE_LICENSE("GPL");
