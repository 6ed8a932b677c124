/* SPDX-License-Identifier: GPL-2.0-only */
/* Constants of the outer header, as published: reals recognise the balancer's packets by its source address. */
#pragma once

#define OUTER_TTL 64
/* 172.16.0.0/16; the lower half spreads flows over the real's queues */
#define OUTER_V4_SOURCE 0xac100000u
/* First word of 100::/64, the discard prefix; the last word spreads flows over the real's queues. */
#define OUTER_V6_SOURCE 0x01000000u
