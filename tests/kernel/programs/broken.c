// SPDX-License-Identifier: GPL-2.0-only
// Does not compile: an unknown type, an undeclared name, a function that nobody declared, and more.
#include <linux/bpf.h>

int broken(struct xdp_md *ctx)
{
	struct nowhere value;
	missing_name = 1;
	undeclared_function(ctx);
	another_missing_name = 2;
	return XDP_PASS;
}
