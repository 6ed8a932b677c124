# SPDX-License-Identifier: Apache-2.0
"""The guest is what tests of TC count on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

MODULES = (
    *("cls_flower", "cls_fw", "cls_matchall", "sch_ingress", "veth", "dummy", "8021q", "ipip"),
    *("act_gact", "act_mirred", "act_pedit", "act_skbedit", "act_vlan"),
)


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/", "overlay"), ("/proc", "proc"), ("/sys", "sysfs"), ("/sys/fs/bpf", "bpf"), ("/run", "tmpfs")],
)
def test_file_systems(place: str, kind: str) -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert kind in {mount[2] for mount in mounts if mount[1] == place}


def test_kernel_is_debians_with_btf() -> None:
    assert os.uname().release.endswith("-cloud-amd64")
    assert Path("/sys/kernel/btf/vmlinux").read_bytes()[:2] == b"\x9f\xeb"


def test_one_cpu_and_root() -> None:
    assert os.cpu_count() == 1
    assert os.geteuid() == 0
    assert socket.gethostname() == "guest"
    assert Path.home() == Path("/root")


@pytest.mark.parametrize("module", MODULES)
def test_modules_load(shell: Callable[..., str], module: str) -> None:
    shell("modprobe", module)
    assert Path("/sys/module", module).is_dir()


def test_loopback_carries() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"there")
            assert accepted.recv(16) == b"there"


def test_namespaces(shell: Callable[..., str]) -> None:
    shell("ip", "netns", "add", "apart")
    assert "lo" in shell("ip", "-n", "apart", "link", "show")
    shell("ip", "netns", "del", "apart")
