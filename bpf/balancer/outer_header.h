/* SPDX-License-Identifier: GPL-2.0-only */
/* The IPIP header in front of a packet to a real, as published: a real knows the balancer's packets by its source. */
#pragma once

#define OUTER_TTL 64
/* 172.16.0.0/16; the lower half spreads flows over the real's queues */
#define OUTER_V4_SOURCE 0xac100000u
#define OUTER_V4_MASK 0xffff0000u
/* First word of 100::/64, the discard prefix; the last one spreads flows over the real's queues. */
#define OUTER_V6_SOURCE 0x01000000u
