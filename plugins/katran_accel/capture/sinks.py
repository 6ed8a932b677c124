# SPDX-License-Identifier: Apache-2.0
"""Where `nfcore capture` writes packets: lines of text or JSON, or pcap-ng. Each packet is flushed."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

from nfcore.cli.stdio import stdout_is_closed
from nfcore.errors import HostError
from nfcore.refusals import explain
from nfcore.text import json_text, printable

from .frames import flow_of
from .pcapng import Packet, PcapNg
from .reasons import VERDICTS


class Sink(Protocol):
    """Takes packets as `capture.read` gives them."""

    def encode(self, packet: Mapping[str, Any]) -> bytes:
        """Give what is to be written for a packet."""
        ...

    def write(self, encoded: bytes) -> None:
        """Write it. BrokenPipeError: nobody reads it."""
        ...

    def is_closed(self) -> bool:
        """Whether nobody reads any more, found out without a write."""
        ...


@contextmanager
def open_sink(path: str | None, snap_length: int, *, as_json: bool) -> Iterator[Sink]:
    """Open a sink: pcap-ng to a file or, for ``-``, to standard output; None: lines there. HostError: no such file."""
    if path is None:
        yield Lines(as_json=as_json)
    elif path == "-":
        yield PcapNgSink(sys.stdout.buffer, snap_length)
    else:
        try:
            file = Path(path).open("wb", buffering=0)  # noqa: SIM115 - its block is below: a packet's error is none of the opening
        except (OSError, ValueError) as error:
            why = explain(error, Path(path)) if isinstance(error, OSError) else str(error)
            raise HostError(f"-w: cannot write {path}: {why}") from None
        with file:
            yield PcapNgSink(file, snap_length)


class Lines:
    """Lines of standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self._format = as_json_line if as_json else as_line

    def encode(self, packet: Mapping[str, Any]) -> bytes:
        """Give a line."""
        return self._format(packet).encode() + b"\n"

    def write(self, encoded: bytes) -> None:
        """Write a line, whatever the character set of standard output is."""
        sys.stdout.write(encoded.decode())
        sys.stdout.flush()

    def is_closed(self) -> bool:
        """Whether the reader of standard output has gone."""
        return stdout_is_closed()


class PcapNgSink:
    """A section of pcap-ng in a file, or at standard output."""

    def __init__(self, file: IO[bytes], snap_length: int) -> None:
        self._file, self._section = file, PcapNg(snap_length)
        self.write(self._section.header())

    def encode(self, packet: Mapping[str, Any]) -> bytes:
        """Give a packet's block, and that of its interface in front if it is new."""
        return self._section.packet(
            Packet(
                packet["interface"],
                packet["time_ns"],
                base64.b64decode(packet["data"]),
                packet["length"],
                VERDICTS.get(packet["verdict"], 0),
                packet["queue"],
                comment_of(packet),
                sent=packet["verdict"] == "tx",
            )
        )

    def write(self, encoded: bytes) -> None:
        """Write whole blocks. HostError: the disk is full."""
        rest = memoryview(encoded)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        except (BrokenPipeError, HostError):
            raise
        except OSError as error:
            raise HostError(f"-w: cannot write: {explain(error)}") from None

    def is_closed(self) -> bool:
        """Whether the reader of standard output has gone."""
        return self._file is sys.stdout.buffer and stdout_is_closed()


def comment_of(packet: Mapping[str, Any]) -> str:
    """Say in one line why a packet has its verdict, and what it was."""
    parts = [f"{packet['verdict']}: {packet['reason']}, {packet['why']}"]
    parts += [f"{what} {packet[key]}" for what, key in (("VIP", "vip"), ("real", "real")) if packet[key]]
    return "; ".join([*parts, f"CPU {packet['cpu']}", f"{packet['arrived_length']} bytes on arrival"])


def flow_text(packet: Mapping[str, Any]) -> str | None:
    """Write whose packet it is, as :func:`flow_of` does."""
    added = packet["length"] - packet["arrived_length"]
    return flow_of(base64.b64decode(packet["data"]), max(0, added))


def as_json_line(packet: Mapping[str, Any]) -> str:
    """Format a packet as a JSON object, with its flow."""
    return json_text({**packet, "flow": flow_text(packet)})


def as_line(packet: Mapping[str, Any]) -> str:
    """Format a packet as one line of text; its time is local."""
    seconds, nanoseconds = divmod(packet["time_ns"], 10**9)
    stamp = f"{datetime.fromtimestamp(seconds):%H:%M:%S}.{nanoseconds // 1000:06}"
    flow = flow_text(packet) or "no IP"
    return printable(f"{stamp} {packet['interface']} {flow} {comment_of(packet)}")
