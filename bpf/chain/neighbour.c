// SPDX-License-Identifier: GPL-2.0-only
/* A function for tests of other functions in a chain: counts every packet and passes it on. */
#include <linux/bpf.h>

#include "lib/chain.h"
#include "lib/map_handle.h"

int neighbour_ingress(struct xdp_md *ctx)
{
	__u32 slot = 0;
	__u64 *seen = bpf_map_lookup_elem(MAP(neighbour_seen), &slot);

	if (seen)
		*seen += 1;
	return chain_next(ctx, XDP_PASS);
}
