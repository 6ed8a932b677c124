// SPDX-License-Identifier: GPL-2.0-only
/*
 * For a real whose kernel has no tunnel driver: removes the balancer's outer header and passes the inner packet to the
 * stack, its TTL untouched. One outer header is removed, no second one inside it. Build choices: GUE_PORT,
 * STRICT_DESTINATION, SERVER_ID, DROP_ALL_FRAGMENTS.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "counters.h"
#include "tunnel.h"
#ifdef SERVER_ID
#include "server_id.h"
#endif

/* Removes the outer headers; 0, and nothing has changed, when the kernel refuses. */
static __always_inline int remove_outer(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	struct ethhdr *eth = (void *)(long)ctx->data, link;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return 0;
	link = *eth;
	link.h_proto = tunnel->inner;
	if (bpf_xdp_adjust_head(ctx, tunnel->bytes))
		return 0;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return 0;
	*eth = link;
	return 1;
}

int nfcore_decap(struct xdp_md *ctx)
{
	struct tunnel tunnel = {};
	enum tunnel_state state = read_tunnel(&tunnel, (void *)(long)ctx->data, (void *)(long)ctx->data_end);

	if (state == TUNNEL_NONE)
		return XDP_PASS;
	if (state != TUNNEL_OPEN || !remove_outer(ctx, &tunnel)) {
		count_drop(state);
		return XDP_DROP;
	}
	count_decapsulated(&tunnel);
#ifdef SERVER_ID
	check_server_id((void *)(long)ctx->data, (void *)(long)ctx->data_end);
#endif
	return XDP_PASS;
}
