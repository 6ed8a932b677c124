# SPDX-License-Identifier: Apache-2.0
"""What tests in the guest share. They own this machine: what they leave behind ends with it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class VethPair:
    """Two interfaces joined by a wire, up, in this namespace; they are quiet unless a test talks."""

    near: str
    """Where rules and programs go."""
    far: str
    """Where frames come from."""


def run(*command: str) -> str:
    """What ``command`` printed; its own words in the failure when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


@pytest.fixture
def shell() -> Callable[..., str]:
    """Run a command, which must succeed; what it printed."""
    return run


@pytest.fixture
def veth_pair() -> Iterator[VethPair]:
    """veth0 and veth1 without addresses of IPv6, so that no frame is there but a test's."""
    run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    for name in ("veth0", "veth1"):
        run("ip", "link", "set", name, "addrgenmode", "none", "up")
    yield VethPair("veth0", "veth1")
    run("ip", "link", "del", "veth0")
