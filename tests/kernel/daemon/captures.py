# SPDX-License-Identifier: Apache-2.0
"""Runs `nfcore capture` in tests, and reads what it has written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scapy.utils import RawPcapNgReader

from nfcore.errors import HostError
from nfcore.kernel import Map, Program
from nfcore.plugins.katran_accel.capture.layouts import CAPTURE_MAPS
from tests.kernel.site import PATIENCE, Site, command_line


def runs(site: Site) -> bool:
    """Whether the program on eth1 samples packets."""
    program = site.program()
    assert program is not None
    with Program.from_id(program) as opened:
        for identifier in opened.map_ids():
            with suppress(HostError), Map.from_id(identifier, CAPTURE_MAPS[0]) as filters:
                return bool(filters.read_array()["until"][0])
    raise LookupError("the program has no captures")


@contextmanager
def capturing(site: Site, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command; the frames of the body are seen by it."""
    command = command_line("capture", "--socket", str(site.socket), *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            assert running.stderr is not None
            assert running.stderr.readline() == b"capturing; Ctrl-C ends it\n"
            assert runs(site)
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def finish(running: subprocess.Popen[bytes], status: int = 0) -> tuple[bytes, str]:
    out, error = running.communicate(timeout=PATIENCE)
    assert running.returncode == status, error
    return out, error.decode()


def packets_of(path: Path) -> list[tuple[bytes, Any]]:
    with RawPcapNgReader(str(path)) as reader:
        return list(reader)
