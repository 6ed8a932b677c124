/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interface that a packet came by: whether the frame is addressed to it, and where its packets go.
 *
 * Build choices: DEVICES (how many there are), OWN_DESTINATION (only frames to the interface's own address are taken),
 * MORE_DESTINATIONS (and to those in hw_accel_macs), OWN_SOURCE (frames leave with the interface's own address; without
 * it, for test packets that come by no interface, with the one that they were sent to).
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "lib/map_handle.h"
#include "katran_abi.h"

struct device {
	__u32 ifindex; /* of the configured interface: a bond's for a packet of its port */
	__u32 number; /* from 0, in the order of the configuration */
	__u8 mac[6];
	__u8 pad[2];
};

#ifdef DEVICES
/* The device that the packet came by, NULL for a port that is not known yet. One device needs no look-up. */
static __always_inline const struct device *device_of(struct xdp_md *ctx)
{
	__u32 key = DEVICES > 1 ? ctx->ingress_ifindex : 0;

	return bpf_map_lookup_elem(MAP(hw_accel_devices), &key);
}

static __always_inline const struct ctl_value *other_next_hop(const struct device *device, __u32 group)
{
	__u32 slot = group * DEVICES + device->number;
	const struct ctl_value *hop = bpf_map_lookup_elem(MAP(hw_accel_next_hops), &slot);

	return hop && hop->pad[0] ? hop : NULL;
}
#else
/* For who only wants the layouts. */
#define DEVICES 1
#define other_next_hop(device, group) NULL
#endif

static __always_inline int same_mac(const __u8 *one, const __u8 *other)
{
	return *(const __u32 *)one == *(const __u32 *)other && *(const __u16 *)(one + 4) == *(const __u16 *)(other + 4);
}

/* Whether the frame is for this machine, and not for another one on the link or for all of them. */
static __always_inline int is_addressed(const struct ethhdr *eth, const struct device *device)
{
#ifdef OWN_DESTINATION
#ifdef MORE_DESTINATIONS
	struct ctl_value key = {};
#endif

	if (same_mac(eth->h_dest, device->mac))
		return 1;
#ifdef MORE_DESTINATIONS
	__builtin_memcpy(key.mac, eth->h_dest, ETH_ALEN);
	return bpf_map_lookup_elem(MAP(hw_accel_macs), &key) != NULL;
#else
	return 0;
#endif
#else
	return 1;
#endif
}

/*
 * The MAC address to which the device sends the packets for a real, NULL when it is not known. Reals with the same next
 * hops are a group, and most are in group 0: there it is Katran's default MAC on the first device.
 */
static __always_inline const struct ctl_value *next_hop(const struct device *device, const struct real_definition *real)
{
	__u32 slot = CTL_GATEWAY_MAC;

	if (real->next_hop || (DEVICES > 1 && device->number))
		return other_next_hop(device, real->next_hop);
	return bpf_map_lookup_elem(MAP(ctl_array), &slot);
}
