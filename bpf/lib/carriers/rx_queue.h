/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Carrier `rx-queue`: the mark is the number of the receive queue that the NIC put the packet on; queue 0 is
 * that of packets without a mark. Trust: whoever can choose the queue, which is the NIC's rules and its RSS: both
 * must leave the queues from 1 on to rules of ours.
 */
#pragma once

#include <linux/types.h>

static __always_inline __u32 carrier_mark(struct xdp_md *ctx)
{
	return ctx->rx_queue_index;
}

/* Nothing travels with the packet. */
static __always_inline void carrier_release(struct xdp_md *ctx)
{
}
