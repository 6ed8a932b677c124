/* SPDX-License-Identifier: GPL-2.0-only */
/* How the programs here name a map: user space creates it and hands its fd to the compiler as -DFD_name=fd. */
#pragma once

#define MAP(name) ((void *)bpf_pseudo_fd(1, FD_##name))
