/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Values of the map `decap_dst`, whose keys are addresses at which tunnels end: 16 bytes, of which IPv4 fills the first
 * four, as published. A key may stand for addresses of both families, so the value says for which; that is nfcore's own.
 */
#pragma once

#define DECAP_EGRESS (1u << 1) /* what came in GUE goes out again */
#define DECAP_IPV4 (1u << 30)
#define DECAP_IPV6 (1u << 31)
