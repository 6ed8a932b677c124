# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of `nfcore capture`: the methods `capture.start`, `capture.read` and `capture.stop`.

A capture lives by the requests of its reader: SILENCE seconds after the last one it ends, in the program by itself, so
that nothing goes on when the reader or the daemon has died.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.parameters import take_parameters
from nfcore.errors import ConfigError, HostError, Problem

from .. import layouts as lay
from ..balancer import Balancer
from ..config import format_network
from ..inventory import Inventory
from .layouts import CAPTURE_SAMPLE, SAMPLE_BYTES
from .reasons import REASONS, VERDICTS, PacketReason
from .session import CaptureMaps, Filter

log = logging.getLogger(__name__)
SILENCE = 5.0
"""Seconds without a request after which a capture ends."""
LONGEST_WAIT = 2.0
"""Seconds that a request may wait for a packet, at most."""
PACE = 0.05
"""Seconds between two looks into the buffer for a request that waits; so no reader can keep the event loop busy."""
MOST_PACKETS = 500
"""In one response: some milliseconds of work."""
DEFAULTS: Mapping[str, Any] = {"vip": None, "real": None, "verdicts": [], "reasons": [], "sample": 1, "snaplen": 128}
"""Parameters of `capture.start`."""
_SOURCE = "capture"
"""What refusals begin with."""
_NAMED = 20
"""How many VIPs or reals an error names."""
_COLUMNS = [name for name in CAPTURE_SAMPLE.names or () if name not in ("pad", "frame")]
_VERDICT_WORDS = {number: word for word, number in VERDICTS.items()}


class CaptureService:
    """The captures of one balancer, one at a time."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._maps = CaptureMaps(balancer.maps.maps) if balancer.table.capture else None
        self._running = ""
        """The capture that runs; empty: none."""
        self._ending: asyncio.TimerHandle | None = None

    def methods(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Give the methods of the control socket. They change what the program does and show what users send."""
        return {"capture.start": self.start, "capture.read": self.read, "capture.stop": self.stop}

    def start(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Begin a capture. ConfigError: a parameter is wrong. HostError: one runs, or the program cannot."""
        if self._maps is None:
            advice = "set katran_accel.capture = true and restart it"
            if self._balancer.table.program is not None:
                advice = "a compiled object (katran_accel.program) gives nfcore no samples"
            raise HostError(f"the daemon's program has no captures: {advice}")
        wanted = read_filter(parameters, self._balancer.inventory)
        if self._running:
            raise HostError(f"a capture is running, and there is one at a time: stop it, or wait up to {SILENCE:g} s")
        self._maps.begin(wanted, SILENCE)
        self._running = secrets.token_hex(8)
        self._stay()
        chosen = ", ".join(f"{name} {value}" for name, value in parameters.items() if value != DEFAULTS[name])
        log.info("a capture begins: %s", chosen or "all packets")
        return {"capture": self._running, "ends_after": SILENCE}

    async def read(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Give packets, with `wait` once there is one or so many seconds have passed."""
        given = {"capture": "", "wait": 0, "limit": MOST_PACKETS, **parameters}
        take_parameters(_SOURCE, parameters, "capture", "limit", "wait")
        wait, limit = _number(given, "wait", 0, 1e9), min(int(_number(given, "limit", 1, 1e9)), MOST_PACKETS)
        maps, capture = self._maps_of(given["capture"]), self._running
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(wait, LONGEST_WAIT)
        self._stay()
        if not wait:
            return self._answer(maps, maps.read(limit))
        while True:
            await asyncio.sleep(PACE)
            self._maps_of(capture)  # it may have been stopped meanwhile
            rows = maps.read(limit)
            if len(rows) or loop.time() >= deadline:
                return self._answer(maps, rows)

    def stop(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """End a capture; the response is that of a last read."""
        take_parameters(_SOURCE, parameters, "capture")
        maps = self._maps_of(parameters.get("capture", ""))
        self._end()
        return self._answer(maps, maps.read(MOST_PACKETS))

    def close(self) -> None:
        """End the capture that runs."""
        self._end()
        if self._maps is not None:
            self._maps.close()

    def _maps_of(self, capture: object) -> CaptureMaps:
        if self._maps is None or not self._running or capture != self._running:
            raise HostError(f"this capture has ended: it was stopped, or nobody read it for {SILENCE:g} s")
        return self._maps

    def _stay(self) -> None:
        """Let the capture end SILENCE seconds from now."""
        assert self._maps is not None
        self._maps.go_on(SILENCE)
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(SILENCE, self._end)

    def _end(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._running and self._maps is not None:
            self._running = ""
            self._maps.end()
            log.info("the capture has ended")

    def _answer(self, maps: CaptureMaps, rows: NDArray[Any]) -> dict[str, Any]:
        # The kernel's clock stands still while the machine sleeps, so this is asked anew.
        epoch = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        counts, interfaces = maps.counts(), {int(index): _name(int(index)) for index in np.unique(rows["ifindex"])}
        frames = rows["frame"].tobytes()
        packets = []
        for number, values in enumerate(zip(*(rows[name].tolist() for name in _COLUMNS), strict=True)):
            row = dict(zip(_COLUMNS, values, strict=True))
            start = number * SAMPLE_BYTES
            frame = frames[start : start + row["bytes"]]
            shown = {"time_ns": row["time"] + epoch, "interface": interfaces[row["ifindex"]]}
            packets.append(shown | self._packet(row) | {"data": base64.b64encode(frame).decode()})
        return {"packets": packets, "fitting": counts.fitting, "lost": counts.lost}

    def _packet(self, row: Mapping[str, int]) -> dict[str, Any]:
        """Give what a sample says beside its frame as JSON values."""
        vip, real, reason = row["vip"], row["real"], PacketReason(row["reason"])
        names = self._balancer.describe(lay.make_target(vip - 1, real)) if vip else {}
        return {
            "queue": row["queue"],
            "cpu": row["cpu"],
            "verdict": _VERDICT_WORDS.get(row["verdict"], "aborted"),
            "reason": reason.word,
            "why": reason.sentence,
            "vip": names.get("vip"),
            "real": names.get("real") if real else None,
            "length": row["frame_bytes"],
            "arrived_length": row["arrived_bytes"],
        }


def _name(ifindex: int) -> str:
    """Name an interface; one that is gone by its number."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"ifindex {ifindex}"


def read_filter(parameters: Mapping[str, Any], inventory: Inventory) -> Filter:
    """Read the parameters of `capture.start`. ConfigError names what is wrong, and what there is."""
    given = {**DEFAULTS, **parameters}
    take_parameters(_SOURCE, parameters, *sorted(DEFAULTS))
    return Filter(
        _bits(given, "verdicts", VERDICTS),
        _bits(given, "reasons", REASONS),
        None if given["vip"] is None else _vip(given["vip"], inventory),
        None if given["real"] is None else _real(given["real"], inventory),
        int(_number(given, "sample", 1, (1 << 32) - 1)),
        int(_number(given, "snaplen", 1, SAMPLE_BYTES)),
    )


def _wrong(name: str, message: str) -> ConfigError:
    return ConfigError(_SOURCE, [Problem(name, message)])


def _number(given: Mapping[str, Any], name: str, least: int, most: float) -> float:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(name, f"is {value!r:.40}; should be a number from {least} to {most:,.0f}")
    return value


def _bits(given: Mapping[str, Any], name: str, known: Mapping[str, int]) -> int:
    """Set the bits of a list of words; all of them for an empty list."""
    words = given[name]
    if not isinstance(words, list):
        raise _wrong(name, f"is {words!r:.40}; should be a list of words")
    for word in words:
        if not isinstance(word, str) or word not in known:
            raise _wrong(name, f"is {word!r:.40}; should be one of {', '.join(known)}")
    return sum({1 << known[word] for word in words or known})


def _vip(text: object, inventory: Inventory) -> int:
    """Find a VIP by its name, or by as much of it as no other VIP has: address and port, or the address."""
    names = {number: vip.name for number, vip in inventory.vips.items()}
    for fits in (
        [number for number, name in names.items() if name == text],
        [number for number, name in names.items() if name.rpartition("/")[0] == text],
        [number for number, vip in inventory.vips.items() if format_network(vip.address) == text],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            several = _some(names[number] for number in fits)
            raise _wrong("vip", f"is {text!r:.60}, which {len(fits)} VIPs have; name one of them: {several}")
    raise _wrong("vip", f"is {text!r:.60}; the VIPs are: {_some(names.values())}")


def _real(text: object, inventory: Inventory) -> int:
    with suppress(ValueError):
        number = inventory.reals.get(ip_address(text if isinstance(text, str) else ""))
        if number is not None:
            return number
    raise _wrong("real", f"is {text!r:.60}; the reals are: {_some(map(str, inventory.reals))}")


def _some(names: Iterable[str]) -> str:
    """Name the first of them, and say how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
