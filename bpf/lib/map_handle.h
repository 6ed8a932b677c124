/* SPDX-License-Identifier: GPL-2.0-only */
/* MAP(name): a map in a program. User space creates the map and gives its fd to the compiler as -DFD_name=fd. */
#pragma once

#define MAP(name) ((void *)bpf_pseudo_fd(1, FD_##name))
