/* SPDX-License-Identifier: GPL-2.0-only */
/* Includes the carrier that the program is built for: each defines carrier_mark() and carrier_release(). */
#pragma once

#if defined(CARRIER_METADATA)
#include "metadata.h"
#elif defined(CARRIER_SKB_MARK)
#include "skb_mark.h"
#elif defined(CARRIER_RX_QUEUE)
#include "rx_queue.h"
#elif defined(CARRIER_NONE)
#include "none.h"
#else
#error "no carrier: build with -DCARRIER_METADATA, -DCARRIER_SKB_MARK, -DCARRIER_RX_QUEUE or -DCARRIER_NONE"
#endif
