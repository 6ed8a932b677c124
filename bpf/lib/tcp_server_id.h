/* SPDX-License-Identifier: GPL-2.0-only */
/* The server id in a TCP header: an option by which a client names the real that its connection belongs to. */
#pragma once

#include <linux/types.h>

#include "packet.h"

#define TCP_SERVER_ID_KIND 0xb7
#define TCP_SERVER_ID_BYTES 6 /* kind, length, and the id, little-endian */
#define TCP_MOST_OPTIONS 15 /* that are looked at; each NOP is one */
#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1

/* The id in the options of the TCP header at `tcp`, 0 when it has none. The fixed header's bounds are checked. */
static __always_inline __u32 tcp_server_id(void *tcp, void *data_end)
{
	__u32 end = (((__u8 *)tcp)[12] >> 4) * 4;
	__u32 at = TCP_HEADER_BYTES;

#pragma unroll
	for (int i = 0; i < TCP_MOST_OPTIONS; i++) {
		__u8 *option = tcp + at;

		/* Two bytes must be left, whatever the option: the id's needs more. */
		if (at + 2 > end || (void *)(option + 2) > data_end || option[0] == TCP_OPTION_END)
			return 0;
		if (option[0] == TCP_OPTION_NOP) {
			at++;
			continue;
		}
		if (option[1] < 2 || at + option[1] > end)
			return 0;
		if (option[0] == TCP_SERVER_ID_KIND) {
			if (option[1] != TCP_SERVER_ID_BYTES || (void *)(option + TCP_SERVER_ID_BYTES) > data_end)
				return 0;
			return option[2] | option[3] << 8 | option[4] << 16 | (__u32)option[5] << 24;
		}
		at = (at + option[1]) & 63; /* at most 60; the mask tells the verifier */
	}
	return 0;
}
