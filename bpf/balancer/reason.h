/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Why a packet got its verdict, noted on its way for capture.h. Without CAPTURE nothing is noted, and these functions
 * cost no instruction. plugins/katran_accel/capture/reasons.py has the same list with what it means.
 */
#pragma once

#include "lib/packet.h"

enum reason {
	REASON_UNKNOWN, /* nothing was noted */
	/* It has a real: */
	REASON_BY_MARK,
	REASON_KNOWN, /* by the connection table */
	REASON_BY_RULE, /* by the route of a flow with a rule, whose packet came without a mark */
	REASON_NEW, /* by the ring */
	REASON_SERVER_ID, /* by an id that it has */
	REASON_SOURCE_ROUTE, /* by its source address */
	REASON_GLOBAL_LRU, /* by the table of other hosts' flows */
	REASON_FRAGMENT, /* by its addresses alone */
	/* It is answered, or taken out of a tunnel: */
	REASON_ECHO,
	REASON_DECAPSULATED,
	/* It is not for the balancer: */
	REASON_NOT_ADDRESSED, /* to another MAC address */
	REASON_OTHER_PROTOCOL,
	REASON_NOT_A_VIP,
	REASON_OTHER_TUNNEL, /* a tunnel that ends elsewhere */
	/* It cannot be sent: */
	REASON_MALFORMED,
	REASON_TOO_BIG,
	REASON_NO_REAL,
	REASON_UNKNOWN_ID, /* its id is that of a real which is not there */
	REASON_FAMILY, /* IPIP cannot take IPv6 to a real of IPv4 */
	REASON_TTL, /* what was in the tunnel has no life left */
	REASON_NO_NEXT_HOP,
	REASON_NO_HEADROOM, /* the driver has no room for an outer header */
	REASONS,
};

/* A packet that nobody changes may get notes: they are no part of what was read. */
static __always_inline void note_reason(const struct packet *packet, enum reason reason)
{
#ifdef CAPTURE
	((struct packet *)packet)->note.reason = reason;
#endif
}

static __always_inline void note_vip(const struct packet *packet, __u32 vip_num)
{
#ifdef CAPTURE
	((struct packet *)packet)->note.vip = vip_num + 1;
#endif
}

static __always_inline void note_real(const struct packet *packet, __u32 vip_num, __u32 real_key)
{
#ifdef CAPTURE
	note_vip(packet, vip_num);
	((struct packet *)packet)->note.real = real_key;
#endif
}

/* Notes the reason, and returns the verdict: `return because(packet, REASON_TOO_BIG, XDP_DROP);`. */
static __always_inline int because(const struct packet *packet, enum reason reason, int verdict)
{
	note_reason(packet, reason);
	return verdict;
}
