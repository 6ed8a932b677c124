/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#define CONFIG_64BIT 1
#define CONFIG_ARCHITECTURE 1
#define CONFIG_BPF_SYSCALL 1
/* The compiler brings its own, newer description of BPF: an installed linux/bpf.h must stay empty. */
#define __LINUX_BPF_H__
/* Headers from a kernel tree use these words; distributions strip them from installed headers. */
#define __user
#define __force
#define __bitwise
#define __attribute_const__ __attribute__((__const__))
