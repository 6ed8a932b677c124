# SPDX-License-Identifier: Apache-2.0
"""The kernel follows at most a million instructions when it loads a program: each variant stays far below."""

from __future__ import annotations

import struct
from contextlib import ExitStack

import pytest

from nfcore.api.carriers import Carrier, carrier_defines
from nfcore.api.marks import MarkMeaning
from nfcore.daemon.chain import map_specs
from nfcore.kernel import Map
from nfcore.kernel.syscall import object_info
from nfcore.plugins.flow_actions.data_plane import DataPlane
from nfcore.plugins.flow_actions.maps import Sizes

LIMIT = 700_000
VERIFIED = 216
"""Offset of `verified_insns` in struct bpf_prog_info, whose size is then at least 220 bytes."""


@pytest.mark.parametrize("meaning", [None, *MarkMeaning])
@pytest.mark.parametrize("carrier", [Carrier.METADATA, Carrier.SKB_MARK])
@pytest.mark.parametrize("options", [{}, {"MARKED_LOOK_UP": 1}, {"CHAIN_NEXT": 1}])
def test_the_verifier_is_far_from_its_limit(
    meaning: MarkMeaning | None, carrier: Carrier, options: dict[str, int]
) -> None:
    with ExitStack() as opened:
        defines = {"MISSING_INTERFACE": "XDP_DROP", **carrier_defines(carrier if meaning else None), **options}
        chain = {spec.name: opened.enter_context(Map.create(spec)) for spec in map_specs(2, 16)}
        maps = {"chain_programs": chain["chain_programs"]} if "CHAIN_NEXT" in options else {}
        plane = opened.enter_context(DataPlane.open(Sizes(1000, 64, 16), meaning, defines, maps, None))
        (followed,) = struct.unpack_from("=I", object_info(plane.program.fd, VERIFIED + 4), VERIFIED)
        assert 0 < followed < LIMIT
