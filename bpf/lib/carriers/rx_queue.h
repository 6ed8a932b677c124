/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Carrier `rx-queue`: the mark is the number of the receive queue that the NIC chose; packets without a mark arrive on
 * queue 0. Trust: whatever chooses the queue, which is the NIC's rules and its RSS. Only nfcore's rules may use queues
 * other than 0.
 */
#pragma once

#include <linux/types.h>

static __always_inline __u32 carrier_mark(struct xdp_md *ctx)
{
	return ctx->rx_queue_index;
}

/* The packet has no metadata. */
static __always_inline void carrier_release(struct xdp_md *ctx)
{
}
