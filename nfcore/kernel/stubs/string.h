/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#define memcpy(to, from, length) __builtin_memcpy(to, from, length)
#define memmove(to, from, length) __builtin_memmove(to, from, length)
#define memset(to, byte, length) __builtin_memset(to, byte, length)
