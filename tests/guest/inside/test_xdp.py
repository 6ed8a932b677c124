# SPDX-License-Identifier: Apache-2.0
"""nfcore's own seam to the kernel works on Debian's: maps, a compiled program, native XDP on a veth."""

from __future__ import annotations

import socket

from nfcore.kernel import XdpMode, attach_xdp, attached_xdp, detach_xdp, interface_index

from .conftest import VethPair
from .programs import count_and_drop, new_counts


def test_native_program_sees_what_arrives(veth_pair: VethPair) -> None:
    ifindex = interface_index(veth_pair.near)
    with new_counts() as counts, count_and_drop(counts) as program:
        assert attach_xdp(ifindex, program, mode=XdpMode.NATIVE) is XdpMode.NATIVE
        there = attached_xdp(ifindex)
        assert there is not None
        assert there.id == program.id
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((veth_pair.far, 0))
            for _ in range(7):
                wire.send(bytes(60))
        # Another program's frames would be counted at other indices.
        assert counts.read_array().tolist() == [0, 7, 0, 0]
        assert detach_xdp(ifindex, expected=program.id)
