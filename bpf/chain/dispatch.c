// SPDX-License-Identifier: GPL-2.0-only
/*
 * The first program of an interface with several network functions.
 *
 *   frame ──► mark? ──► chain_owners: whose? ──► that function
 *               └─ none, or nobody's of this chain ──► the first function ──► (chain_next) ──► the second ──► …
 *
 * Build with CARRIER_*, CHAIN_FIRST: slot of the chain's first function, CHAIN_FUNCTIONS: number of slots in use,
 * CHAIN_MEMBERS: a bit for each slot whose function is one of this chain, and FD_<map> for both maps.
 */
#include <linux/bpf.h>

#include "lib/carriers/carrier.h"
#include "lib/chain.h"
#include "lib/map_handle.h"

int chain_ingress(struct xdp_md *ctx)
{
	__u32 mark = carrier_mark(ctx);

	if (mark) {
		/* The slot of the mark's owner and one; 0: nobody owns it. */
		__u32 *owner = bpf_map_lookup_elem(MAP(chain_owners), &mark);

#pragma unroll
		for (int slot = 0; slot < CHAIN_FUNCTIONS; slot++) {
			if (CHAIN_MEMBERS >> slot & 1 && owner && *owner == slot + 1)
				CHAIN_CALL(ctx, slot);
		}
	}
	CHAIN_CALL(ctx, CHAIN_FIRST);
	/* The function is gone: the kernel's stack gets the packet, as without a program. */
	return XDP_PASS;
}
