/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reads the key of a packet, once: also of fragments, of IPv4 with options, of IPv6 with extension headers and of any
 * protocol. No packet is refused: what cannot be read is left out.
 *
 * Ports are 0 in fragments, in protocols other than TCP and UDP, and where the frame ends before them.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include "lib/packet.h"
#include "key.h"

#define PLAIN_IPV4 0x45 /* version 4, no options */
#define IPV6_FRAGMENT_BITS 0xfff9 /* offset and "more fragments": all 0 in a packet that is whole */
#define MOST_EXTENSIONS 4
#define EXTENSION_UNIT 8 /* bytes: the length of an extension header is counted in these */

struct extension {
	__u8 next;
	__u8 length; /* units after the first */
	__be16 fragment; /* of a fragment header */
	__be32 rest;
};

static __always_inline int is_extension(__u32 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT;
}

/* Both ports, or 0. */
static __always_inline __u32 read_ports(const __u32 *ports, void *data_end)
{
	return (void *)(ports + 1) > data_end ? 0 : *ports;
}

static __always_inline __u32 read_ipv4_ports(struct iphdr *ip, void *data_end)
{
	__u32 first = *(__u8 *)ip, header_bytes = sizeof(*ip);

	if (!has_ports(ip->protocol) || ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET))
		return 0;
	if (first != PLAIN_IPV4) {
		header_bytes = (first & 0xf) * 4;
		if (first >> 4 != 4 || header_bytes < sizeof(*ip))
			return 0;
	}
	return read_ports((void *)ip + header_bytes, data_end);
}

/* 0: there is no whole IP header. */
static __always_inline int read_ipv4_key(struct match_key *key, void *data, void *data_end)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if ((void *)(ip + 1) > data_end)
		return 0;
	key->words[0] = first_word(read_ipv4_ports(ip, data_end), ip->protocol);
	key->words[1] = *(__u64 *)&ip->saddr;
	return 1;
}

/*
 * The protocol behind the extension headers, from `protocol` on; `offset`: where the next header begins, afterwards
 * where ports may be, or 0 if the packet is a fragment. The headers of all fragments of a packet are read up to the
 * same place, so they have the same protocol.
 */
static __always_inline __u32 skip_extensions(__u32 protocol, __u32 *offset, void *data, void *data_end)
{
#pragma unroll
	for (int i = 0; i < MOST_EXTENSIONS; i++) {
		struct extension *extension = data + *offset;

		if (!is_extension(protocol))
			return protocol;
		if ((void *)(extension + 1) > data_end)
			return UNKNOWN_PROTOCOL;
		if (protocol == IPPROTO_FRAGMENT) {
			protocol = extension->next;
			*offset += EXTENSION_UNIT;
			if (extension->fragment & bpf_htons(IPV6_FRAGMENT_BITS)) {
				*offset = 0;
				break;
			}
		} else {
			protocol = extension->next;
			*offset += (extension->length + 1) * EXTENSION_UNIT;
		}
	}
	return is_extension(protocol) ? UNKNOWN_PROTOCOL : protocol;
}

static __always_inline int read_ipv6_key(struct match_key *key, void *data, void *data_end)
{
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	__u32 protocol, ports = 0, offset = sizeof(struct ethhdr) + sizeof(*ip);
	__u64 *addresses = (void *)&ip->saddr;

	if ((void *)(ip + 1) > data_end)
		return 0;
	protocol = ip->nexthdr;
	if (is_extension(protocol))
		protocol = skip_extensions(protocol, &offset, data, data_end);
	if (has_ports(protocol) && offset)
		ports = read_ports(data + offset, data_end);
	key->words[0] = first_word(ports, protocol);
#pragma unroll
	for (int i = 0; i < KEY_WORDS_V6 - 1; i++)
		key->words[1 + i] = addresses[i];
	return 1;
}

static __always_inline int read_key(struct match_key *key, void *data, void *data_end, int family)
{
	return family == AF_INET ? read_ipv4_key(key, data, data_end) : read_ipv6_key(key, data, data_end);
}
