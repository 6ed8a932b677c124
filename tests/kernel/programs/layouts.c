// SPDX-License-Identifier: GPL-2.0-only
/* Fails to compile when a numpy layout and its struct differ; the test adds CHECK_LAYOUTS. */
#define MIN_PACKETS 1
#define CARRIER_METADATA 1
#define MARK_IS_FLOW 1
#define EVENTS_RINGBUF 1
#include <linux/bpf.h>

#include "balancer/capture.h"
#include "balancer/slow_path.h"
#include "decap/counters.h"
#include "healthcheck/abi.h"

CHECK_LAYOUTS

int layouts(struct xdp_md *ctx)
{
	return XDP_PASS;
}
