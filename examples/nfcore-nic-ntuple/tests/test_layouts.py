# SPDX-License-Identifier: Apache-2.0
"""Every dtype and constant equals that of <linux/ethtool.h>, compared by the C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nfcore_nic_ntuple import layouts

STRUCTS = {
    "ethtool_tcpip4_spec": layouts.TCPIP4_SPEC,
    "ethtool_tcpip6_spec": layouts.TCPIP6_SPEC,
    "ethtool_flow_ext": layouts.FLOW_EXT_AREA,
    "ethtool_rx_flow_spec": layouts.FLOW_SPEC,
    "ethtool_rxnfc": layouts.RXNFC,
    "ethtool_channels": layouts.CHANNELS,
    "ethtool_value": layouts.VALUE,
    "ethtool_rxfh_indir": layouts.RXFH_INDIR,
}
OWN_NAMES = {
    "UNION_BYTES": "sizeof(union ethtool_flow_union)",
    "RULE_LOCS_AT": "offsetof(struct ethtool_rxnfc, rule_locs)",
}


def compiled(tmp_path: Path, structs: dict[str, np.dtype], numbers: dict[str, int]) -> str:
    """Compile assertions about structs and constants; return the compiler's errors."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler (cc, gcc or clang) to read <linux/ethtool.h>")
    lines = ["#include <stddef.h>", "#include <linux/ethtool.h>", "#include <linux/sockios.h>"]
    for name, dtype in structs.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}");')
        for field, (kind, offset, *_) in (dtype.fields or {}).items():
            place, size = f"offsetof(struct {name}, {field})", f"sizeof(((struct {name} *)0)->{field})"
            lines.append(f'_Static_assert({place} == {offset} && {size} == {kind.itemsize}, "{name}.{field}");')
    for name, value in numbers.items():
        lines.append(f'_Static_assert((unsigned long long)({OWN_NAMES.get(name, name)}) == {value}ULL, "{name}");')
    source = tmp_path / "layouts.c"
    source.write_text("\n".join(lines) + "\n")
    command = [compiler, "-std=gnu11", "-fsyntax-only", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_dtypes_and_numbers_equal_the_header(tmp_path: Path) -> None:
    assert len(layouts.CONSTANTS) > 20
    assert compiled(tmp_path, STRUCTS, layouts.CONSTANTS) == ""


def test_the_comparison_notices_differences(tmp_path: Path) -> None:
    shifted = np.dtype([("data", "=u4"), ("cmd", "=u4")])
    errors = compiled(tmp_path, {"ethtool_value": shifted}, {"ETHTOOL_GFLAGS": 0x26})
    assert "ethtool_value.data" in errors and "ETHTOOL_GFLAGS" in errors
