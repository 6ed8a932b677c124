# SPDX-License-Identifier: Apache-2.0
"""Every dtype and number is that of <linux/ethtool.h>, as the C compiler sees it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nfcore_nic_ntuple import layouts as lay

STRUCTS = {
    "ethtool_tcpip4_spec": lay.TCPIP4_SPEC,
    "ethtool_tcpip6_spec": lay.TCPIP6_SPEC,
    "ethtool_flow_ext": lay.FLOW_EXT_AREA,
    "ethtool_rx_flow_spec": lay.FLOW_SPEC,
    "ethtool_rxnfc": lay.RXNFC,
    "ethtool_channels": lay.CHANNELS,
    "ethtool_value": lay.VALUE,
    "ethtool_rxfh_indir": lay.RXFH_INDIR,
}
OWN_NAMES = {
    "UNION_BYTES": "sizeof(union ethtool_flow_union)",
    "RULE_LOCS_AT": "offsetof(struct ethtool_rxnfc, rule_locs)",
}


def compiled(tmp_path: Path, structs: dict[str, np.dtype], numbers: dict[str, int]) -> str:
    """What the compiler has to say against them."""
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
    assert len(lay.CONSTANTS) > 20
    assert compiled(tmp_path, STRUCTS, lay.CONSTANTS) == ""


def test_the_comparison_notices_differences(tmp_path: Path) -> None:
    shifted = np.dtype([("data", "=u4"), ("cmd", "=u4")])
    said = compiled(tmp_path, {"ethtool_value": shifted}, {"ETHTOOL_GFLAGS": 0x26})
    assert "ethtool_value.data" in said and "ETHTOOL_GFLAGS" in said
