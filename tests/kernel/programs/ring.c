// SPDX-License-Identifier: GPL-2.0-only
// A record per packet in a ring buffer; every DISCARD-th is thrown away, every ODD-th has another size.
#include "events.h"

int ring(struct xdp_md *ctx)
{
	__u32 *next = sequence();
	if (!next)
		return XDP_ABORTED;

	if (*next % ODD == ODD - 1) {
		struct odd_record *odd = bpf_ringbuf_reserve(MAP(events), sizeof(*odd), 0);
		if (!odd)
			return XDP_DROP;
		odd->words[0] = *next;
		bpf_ringbuf_submit(odd, BPF_RB_NO_WAKEUP);
	} else {
		struct record *record = bpf_ringbuf_reserve(MAP(events), sizeof(*record), 0);
		if (!record)
			return XDP_DROP;
		fill(record, *next);
		if (*next % DISCARD == DISCARD - 1)
			bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		else
			bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	*next += 1;
	return XDP_PASS;
}
