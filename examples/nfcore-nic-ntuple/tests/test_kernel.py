# SPDX-License-Identifier: Apache-2.0
"""The real ioctl on the real kernel: its refusals, and requests compared with those of the program ethtool."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import DEVICE
from test_backend import rules

from nfcore.api.config import Config, InterfaceTable, MarkingTable, NfTable, OffloadTable
from nfcore.api.rules import Device, Outcome
from nfcore.daemon.bootstrap import make_context
from nfcore.hooks.manager import PluginManager
from nfcore_nic_ntuple import NAME, NicNtuplePlugin, NtupleTable
from nfcore_nic_ntuple.backend import NtupleBackend, Settings
from nfcore_nic_ntuple.ethtool import EthtoolSocket, Nic
from nfcore_nic_ntuple.layouts import FLOW_SPEC
from nfcore_nic_ntuple.notes import Notes

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace needs root")


@pytest.fixture
def veth() -> Iterator[Device]:
    """A veth with four queues in its own network namespace, which this thread enters."""
    name = f"nftest-ntuple-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        queues = "numrxqueues 4 numtxqueues 4"
        command = f"ip -n {name} link add name nic0 {queues} type veth peer name w {queues}"
        subprocess.run(command.split(), check=True)
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
            _enter(there.fileno())
            try:
                yield Device("nic0", socket.if_nametoindex("nic0"), (NAME,))
            finally:
                _enter(home.fileno())
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def _enter(fd: int) -> None:
    import ctypes

    assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0


@needs_root
def test_the_kernel_reads_the_requests(veth: Device) -> None:
    """EOPNOTSUPP, not EFAULT, EINVAL or ENODEV: the call reaches veth, which has no classifier."""
    with EthtoolSocket(veth.ifindex) as ioctl:
        nic = Nic(ioctl)
        assert nic.queues() == 4
        assert nic.ntuple_is_on() is False
        assert nic.rss_queues() is None
        spec = np.zeros(1, dtype=FLOW_SPEC)[0]
        for call in (nic.table, lambda: nic.read([0]), lambda: nic.insert(spec), lambda: nic.delete(0)):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP


@needs_root
def test_a_renamed_interface_is_still_found(veth: Device) -> None:
    with EthtoolSocket(veth.ifindex) as ioctl:
        subprocess.run(["ip", "link", "set", "nic0", "name", "other"], check=True)
        assert Nic(ioctl).queues() == 4
        subprocess.run(["ip", "link", "del", "other"], check=True)
        with pytest.raises(OSError) as caught:
            Nic(ioctl).queues()
        assert caught.value.errno == errno.ENODEV


@needs_root
def test_a_veth_cannot_mark_and_gives_the_reason(veth: Device, tmp_path: Path) -> None:
    plugin = NicNtuplePlugin()
    config = Config(
        source="test.toml",
        nf=NfTable(plugins=[NAME], socket=str(tmp_path / "nf.sock")),
        interfaces=[InterfaceTable(name="nic0", chain=["nf"], offload=[NAME, "none"])],
        marking=MarkingTable(carrier="rx-queue", width=2),
        offload=OffloadTable(),
        sections={NAME: NtupleTable()},
    )
    plugin.setup(make_context(config, PluginManager(), [veth]))
    capabilities = plugin.probe_offload(veth)
    assert capabilities.mark_width == 0
    assert "nic0 has no rules that steer flows to queues: Operation not supported" in capabilities.describe()
    assert "ntuple-filters is off" in capabilities.describe()
    outcomes = plugin.install_offload(veth, rules([2]))
    assert outcomes.status.tolist() == [Outcome.FAILED]
    rows = plugin.dump_offload(veth)
    assert rows is not None and len(rows) == 0
    plugin.teardown()
    assert not list(tmp_path.iterdir())


def test_requests_are_those_of_the_ethtool_program(tmp_path: Path) -> None:
    """For the same rule, `ethtool -N` and the backend send the same bytes to the driver.

    No such NIC is needed: a preloaded library replaces ethtool's ioctl and stores the request.
    """
    compiler, ethtool = shutil.which("cc") or shutil.which("gcc"), shutil.which("ethtool") or "/usr/sbin/ethtool"
    if compiler is None or not Path(ethtool).exists():
        pytest.skip("needs a C compiler and the program ethtool")
    library, seen = tmp_path / "answer.so", tmp_path / "seen"
    source = tmp_path / "answer.c"
    source.write_text(ANSWER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    v4 = "src-ip 198.18.0.2 dst-ip 198.19.10.1 src-port 40000 dst-port 80"
    v6 = "src-ip 2001:db8::3 dst-ip 2001:db8:1::1 src-port 40000 dst-port 80"
    for batch, match in (
        (rules([2], 5), f"tcp4 {v4} action 5"),
        (rules([2], 0, proto="udp"), f"udp4 {v4} action -1"),
        (rules([3], 7), f"tcp6 {v6} action 7"),
        (rules([3], 1, proto="udp"), f"udp6 {v6} action 1"),
    ):
        environment = {**os.environ, "LD_PRELOAD": str(library), "SEEN": str(seen)}
        command = [ethtool, "-N", "lo", "flow-type", *match.split(), "loc", "3"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert re.search(r"[Aa]dded|^$", done.stdout + done.stderr), done.stdout + done.stderr
        expected = seen.read_bytes()
        requests: list[bytes] = []
        backend = NtupleBackend(Recorder(requests), Notes(), Settings(DEVICE.name, range(3, 4)))
        assert backend.install(batch).status.tolist() == [Outcome.INSTALLED]
        (request,) = requests
        # The command and the rule without its padding; ethtool does not set the rest.
        for part in (slice(0, 4), slice(16, 164), slice(168, 180)):
            assert request[part].hex(" ", 4) == expected[part].hex(" ", 4)


class Recorder:
    """A NIC with 8 queues that accepts every rule and records the requests."""

    def __init__(self, into: list[bytes]) -> None:
        self._into = into

    def __call__(self, buffer: np.ndarray) -> None:
        command = int(buffer[:4].view(np.uint32)[0])
        if command == 0x32:
            self._into.append(buffer.tobytes())
        elif command == 0x2D:
            buffer[8:16].view(np.uint64)[0] = 8
        elif command == 0x38:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")


ANSWER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
#include <net/if.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>

int ioctl(int fd, unsigned long request, ...)
{
	va_list rest;
	va_start(rest, request);
	void *argument = va_arg(rest, void *);
	va_end(rest);
	if (request == SIOCETHTOOL) {
		struct ethtool_rxnfc *asked = (void *)((struct ifreq *)argument)->ifr_data;
		if (asked->cmd == ETHTOOL_SRXCLSRLINS) {
			int out = open(getenv("SEEN"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
			write(out, asked, sizeof(*asked));
			close(out);
			return 0;
		}
	}
	int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
	return real(fd, request, argument);
}
"""
