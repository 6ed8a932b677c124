/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From one function of a chain to the next. A function calls chain_next() wherever it has no opinion on a packet, or
 * lets the packet go on. Build with -DCHAIN_NEXT=n, n: slot of the next function in the map `chain_programs`; without
 * CHAIN_NEXT it is the last function, or the only one, and pays nothing.
 */
#pragma once

#include <linux/bpf.h>

#include "lib/map_handle.h"

#ifdef FD_chain_programs
/*
 * Continues in the program of a slot, a constant; returns only when the slot is empty. The empty assembler line differs
 * from call to call. It keeps the compiler from joining calls into one with a variable slot: the JIT makes a direct
 * jump of a constant slot only.
 */
#define CHAIN_CALL(ctx, slot)                                                                                          \
	do {                                                                                                           \
		bpf_tail_call_(MAP(chain_programs), ctx, slot);                                                        \
		asm volatile("" : : "i"(slot));                                                                        \
	} while (0)
#endif

/* Passes the packet on. `verdict`: what becomes of it after the last function. */
static __always_inline int chain_next(struct xdp_md *ctx, int verdict)
{
#ifdef CHAIN_NEXT
	CHAIN_CALL(ctx, CHAIN_NEXT);
#endif
	return verdict;
}
