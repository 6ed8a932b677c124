// SPDX-License-Identifier: GPL-2.0-only
// The end of a link with VLAN tags, for kernels without VLAN devices: what leaves gets the tag INNER, and in front of it
// the tag OUTER if that is defined; what comes must have the same tags, which are taken off, and is dropped without them.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#define TAG(protocol, id) bpf_htonl((protocol) << 16 | (id))
#ifdef OUTER
#define TAGS 2
#else
#define TAGS 1
#endif

struct tagged {
	__u8 macs[2 * ETH_ALEN];
	__be32 tags[TAGS];
};

int tag(struct __sk_buff *skb)
{
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), INNER))
		return TC_ACT_SHOT;
#ifdef OUTER
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), OUTER))
		return TC_ACT_SHOT;
#endif
	return TC_ACT_OK;
}

int untag(struct xdp_md *ctx)
{
	struct tagged *frame = (void *)(long)ctx->data;
	__u8 macs[2 * ETH_ALEN];

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end || frame->tags[TAGS - 1] != TAG(ETH_P_8021Q, INNER))
		return XDP_DROP;
#ifdef OUTER
	if (frame->tags[0] != TAG(ETH_P_8021AD, OUTER))
		return XDP_DROP;
#endif
	__builtin_memcpy(macs, frame->macs, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, sizeof(frame->tags)))
		return XDP_DROP;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(frame->macs, macs, sizeof(macs));
	return XDP_PASS;
}
