# SPDX-License-Identifier: Apache-2.0
"""The checks of a device for the carrier rx-queue; the driver's replies are simulated, byte by byte."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from nfcore.api.carriers import Carrier, carrier_defines, examine_carrier, examine_carriers
from nfcore.api.findings import Finding, Status
from nfcore.api.rules import Device
from nfcore.daemon.preconditions import require
from nfcore.errors import HostError
from nfcore.kernel import ethtool
from nfcore.kernel.ethtool import queue_facts

ACCELERATED, PLAIN = Device("eth1", 1, ("nic",)), Device("eth1", 1)


def simulate(monkeypatch: pytest.MonkeyPatch, rss: list[int] | None, combined: int | None = 8) -> None:
    """Reply as a driver with this indirection table and this number of channels; None: it has no such call."""

    def reply(name: str, request: bytes, room: int) -> bytes:
        (command,) = struct.unpack_from("=I", request)
        data = bytearray(request + bytes(room))
        if command == 0x3C and combined is not None:
            struct.pack_into("=9I", data, 0, command, 0, 0, 0, 16, 0, 0, 0, combined)
        elif command == 0x38 and rss is not None:
            (size,) = struct.unpack_from("=I", request, 4)
            assert size in (0, len(rss)) and room >= 4 * size
            struct.pack_into(f"={size}I", data, 8, *rss[:size])
            struct.pack_into("=I", data, 4, len(rss))
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return bytes(data)

    monkeypatch.setattr(ethtool, "_ethtool", reply)


def examined() -> Finding:
    finding = examine_carrier(Carrier.RX_QUEUE, ACCELERATED)
    assert finding is not None
    return finding


def test_rss_over_other_queues_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [0, 1, 2, 3] * 32)
    assert queue_facts("eth1").rss == {0, 1, 2, 3}
    with pytest.raises(HostError, match=r"eth1: rx-queue: RSS .* 3 other queues.*: ethtool -X eth1 equal 1"):
        require(examine_carriers(Carrier.RX_QUEUE, [ACCELERATED]))
    simulate(monkeypatch, [0, 5])
    assert examined().status is Status.FAULT
    assert "another queue" in examined().found


def test_rss_on_queue_0_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [0] * 128)
    assert examined().status is Status.OK
    require(examine_carriers(Carrier.RX_QUEUE, [ACCELERATED]))


def test_unknown_settings_of_a_driver_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(monkeypatch, None, combined=8)
    require(examine_carriers(Carrier.RX_QUEUE, [ACCELERATED]))
    assert "does not report how it spreads unmarked packets" in caplog.text
    simulate(monkeypatch, None, combined=None)
    assert examined().status is Status.WARNING
    simulate(monkeypatch, [], combined=1)
    assert examined().status is Status.OK


def test_without_marks_the_device_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [0, 1])
    require(examine_carriers(Carrier.RX_QUEUE, [PLAIN]))
    require(examine_carriers(Carrier.METADATA, [ACCELERATED]))
    assert examine_carrier(Carrier.METADATA, ACCELERATED) is None


def test_all_devices_of_the_program_read_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [0, 1])
    with pytest.raises(HostError, match="eth2: rx-queue"):
        require(examine_carriers(Carrier.RX_QUEUE, [Device("eth2", 2), ACCELERATED]))


def test_programs_are_built_for_their_carrier() -> None:
    assert carrier_defines(Carrier.RX_QUEUE) == {"CARRIER_RX_QUEUE": 1}
    assert carrier_defines(Carrier.RX_QUEUE, tracing=True) == {"CARRIER_METADATA": 1}
