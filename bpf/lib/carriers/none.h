/* SPDX-License-Identifier: GPL-2.0-only */
/* Carrier `none`: the program without acceleration, every packet on the slow path. */
#pragma once

#include <linux/types.h>

static __always_inline __u32 carrier_mark(struct xdp_md *ctx)
{
	return 0;
}

static __always_inline void carrier_release(struct xdp_md *ctx)
{
}
