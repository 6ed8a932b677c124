# SPDX-License-Identifier: Apache-2.0
"""Objects as others compile them: tests/kernel/programs/foreign_balancer.c by clang, with libbpf's headers."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from nfcore.kernel import BPF_SOURCES
from tests.paths import PROGRAMS

SOURCE = PROGRAMS / "foreign_balancer.c"
LIBBPF_HEADER = Path("/usr/include/bpf/bpf_helpers.h")
FEW_RINGS = "RINGS=16"
"""The published 512 rings take 268 MB."""


def compile_object(folder: Path, *defines: str, btf: bool = True) -> Path:
    """Compile the balancer with build-time choices; skips when the compiler is missing. btf: describe its types."""
    if shutil.which("clang") is None or not LIBBPF_HEADER.exists():
        pytest.skip("compiling an object needs clang and libbpf's headers: apt-get install clang libbpf-dev")
    path = folder / "-".join(["foreign", *(each.partition("=")[0].lower() for each in defines)])
    made = path.with_suffix(".o")
    # Where the distribution has asm/types.h, which clang does not look for when it compiles for BPF.
    system = f"/usr/include/{platform.machine()}-linux-gnu"
    flags = f"-target bpf -O2 {'-g' if btf else ''} -Wall -Wextra -Werror -Wno-unused-function -idirafter {system}"
    chosen = [f"-D{each}" for each in defines]
    command = ["clang", *flags.split(), f"-I{BPF_SOURCES}", *chosen, "-c", str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True)
    return made
