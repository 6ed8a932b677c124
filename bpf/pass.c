// SPDX-License-Identifier: GPL-2.0-only
/* For the other end of a veth: what XDP_TX sends waits there until the end has a program of its own. */
#include <linux/bpf.h>

int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
