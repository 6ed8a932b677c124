/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Carrier `skb-mark`: the mark of the skb from which a native-XDP veth made its xdp_buff. The driver keeps a pointer
 * to the skb behind the xdp_buff; both offsets come from the running kernel's BTF. Trust: whoever may set a mark on
 * packets that leave by the peer. Only for veth in native mode: elsewhere the value that is read is arbitrary, and
 * only the checks of the fast path reject it.
 */
#pragma once

#include <linux/types.h>

static __always_inline __u32 carrier_mark(struct xdp_md *ctx)
{
	void *skb = NULL;
	__u32 mark = 0;

	if (bpf_probe_read_kernel(&skb, sizeof(skb), (void *)ctx + SKB_OF_XDP_BUFF) || !skb)
		return 0;
	if (bpf_probe_read_kernel(&mark, sizeof(mark), skb + MARK_OF_SKB))
		return 0;
	return mark;
}

static __always_inline void carrier_release(struct xdp_md *ctx)
{
}
