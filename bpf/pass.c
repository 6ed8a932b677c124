// SPDX-License-Identifier: GPL-2.0-only
/* For the peer of a veth: it receives frames of the other end's XDP_TX only with an XDP program of its own. */
#include <linux/bpf.h>

int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
