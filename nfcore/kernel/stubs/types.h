/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include <uapi/linux/types.h>
#include <stddef.h>
#include <stdbool.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __s64 ssize_t;
typedef __UINTPTR_TYPE__ uintptr_t;
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
