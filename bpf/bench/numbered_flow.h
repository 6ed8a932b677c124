/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Flows by number: flow n goes from source n % 65,536 and port FIRST_PORT + n / 65,536 to service n % SERVICES.
 * All flows are different and none is stored, so a million flows take no cache.
 * nfcore/bench/traffic.py computes the same.
 *
 * Build-time choice: SCATTERED. There are 131,072 sources, and flows with neighbouring numbers have sources far apart:
 * any range of numbers is spread over all networks.
 */
#pragma once

#include <linux/types.h>

#include "lib/map_handle.h"

#define FIRST_PORT 1024
#ifdef SCATTERED
#define SOURCE_BITS 17
#define SOURCE_STEP 81007u /* odd: each number of the lower 17 bits has its own source */
#define SOURCE_V4 0xc6120000u /* 198.18.0.0/15 */
#else
#define SOURCE_BITS 16
#define SOURCE_STEP 1u
#define SOURCE_V4 0xc6130000u /* 198.19.0.0/16 */
#endif

/* Where flows go: an address, its first word alone for IPv4, and a TCP port. */
struct bench_service {
	__be32 addr[4];
	__be16 port;
	__u16 pad[3];
};

static __always_inline struct bench_service *service_of(__u32 flow)
{
	__u32 slot = flow % SERVICES;

	return bpf_map_lookup_elem(MAP(bench_services), &slot);
}

static __always_inline __be16 source_port_of(__u32 flow)
{
	return bpf_htons(FIRST_PORT + (flow >> SOURCE_BITS));
}

/* The last word of the source's address. */
static __always_inline __be32 source_of(__u32 flow, __u32 prefix)
{
	return bpf_htonl(prefix | (flow * SOURCE_STEP & ((1u << SOURCE_BITS) - 1)));
}
