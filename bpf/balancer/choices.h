/* SPDX-License-Identifier: GPL-2.0-only */
/* Build choices that follow from others. To be included first. */
#pragma once

/* Packets may name their real. */
#if defined(QUIC) || defined(UDP_STABLE_ROUTING) || defined(TCP_SERVER_IDS)
#define ROUTES_BY_ID
#endif

/* Tunnels may end here. */
#if defined(DECAP_IPIP) || defined(DECAP_GUE)
#define ENDS_TUNNELS
#endif

/* Some flags of the VIP matter when a packet is sent. */
#if defined(LOCAL_DELIVERY) || defined(HIDES_SOURCE_PORT)
#define ROUTE_HAS_FLAGS
#endif

/* Of lib/packet.h: other protocols than TCP and UDP are looked at. */
#if defined(ICMP) || defined(DECAP_IPIP)
#define OTHER_PROTOCOLS
#endif
