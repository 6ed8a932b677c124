# SPDX-License-Identifier: Apache-2.0
"""XDP programs of the tests here.

The host compiles them before it boots, which takes a fraction of a second there and 20 s in the guest; the
guest finds them in nfcore's cache of compiled programs. What is missing here is compiled once in the guest
and kept for its next boot.
"""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import numpy as np

from nfcore.api.carriers import Carrier
from nfcore.api.rules import Device
from nfcore.bench.testbed import GATEWAY_MAC, config_text
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context
from nfcore.daemon.chain import Chains, try_dispatcher
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import BPF_SOURCES, Map, MapSpec, MapType, Program, compile_program
from nfcore.kernel.links import read_link
from nfcore.plugins.katran_accel.decap.program import DecapOptions, Decapsulation
from tests.kernel.flow_actions.chain import chain_config
from tests.paths import PROGRAMS

_VERDICT = PROGRAMS / "verdict.c"
_MARKS_SEEN = Path(__file__).parents[1] / "simnic" / "xdp" / "marks_seen.c"
_COUNTS = MapSpec("counts", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint64), 4)
_MARKS = MapSpec("marks", MapType.HASH, np.dtype(np.uint32), np.dtype(np.uint64), 64)
_TARGET = MapSpec("target", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint32), 1)
_ANSWERS = ("DROP", "PASS", "TX", "REDIRECT")
OFFLOAD = 'min_packets = 2\nidle_timeout = "10m"'
"""What the daemons here have in `[offload]`."""
CHAIN = ("flow_actions", "katran_accel")
_BALANCER = """
[katran_accel]
gateway_mac = "02:00:00:00:00:01"
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }]
"""
NO_MARK = 0xFFFF_FFFF
"""What :func:`count_marks` counts frames as that came without metadata."""


def new_counts() -> Map:
    """What :func:`count_and_drop` counts in."""
    return Map.create(_COUNTS)


def count_and_drop(counts: Map) -> Program:
    """A program that drops every frame and counts it at index 1."""
    defines: dict[str, int | str] = {"VERDICT": "XDP_DROP", "COUNT_AS": 1}
    return compile_program(_VERDICT, "verdict_prog_with_a_long_name", defines=defines, maps={"counts": counts})


def new_marks() -> Map:
    """What :func:`count_marks` counts in, frames by mark."""
    return Map.create(_MARKS)


def new_target() -> Map:
    """Where :func:`count_marks` redirects to: an ifindex, at 0."""
    return Map.create(_TARGET)


def count_marks(marks: Map, target: Map, answer: str) -> Program:
    """A program that counts frames by the mark in their metadata and answers XDP_``answer``."""
    defines: dict[str, int | str] = {"VERDICT": f"XDP_{answer}", "NO_MARK": f"{NO_MARK}U"}
    return compile_program(_MARKS_SEEN, "marks_seen", defines=defines, maps={"marks": marks, "target": target})


def pass_everything() -> Program:
    """A program that lets every frame pass."""
    return compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={})


def prebuild() -> None:
    """Have every program here compiled. Raises HostError."""
    pass_everything().close()
    Decapsulation(DecapOptions()).close()
    with new_counts() as counts:
        count_and_drop(counts).close()
    with new_marks() as marks, new_target() as target:
        for answer in _ANSWERS:
            count_marks(marks, target, answer).close()
    for strategy in ("dest-id", "flow-id"):
        with tempfile.TemporaryDirectory() as folder:
            marking = f'strategy = "{strategy}"\ncarrier = "metadata"'
            for more in ("", "vlan = true"):
                _load_balancer(Path(folder), marking, more)
            _load_chain(Path(folder), strategy)
    try_dispatcher(CHAIN, Carrier.METADATA)


def _load_balancer(folder: Path, marking: str, more: str) -> None:
    """Load the balancer's program as a daemon does. That of carrier skb-mark depends on the kernel."""
    config, plugins, device = folder / "nf.toml", PluginManager(), _some_device()
    parts = {"interface": device.name, "marking": marking, "offload": OFFLOAD}
    table = _BALANCER.replace("[katran_accel]", f"[katran_accel]\n{more}")
    config.write_text(config_text(folder, "katran_accel", "tc_offload", table, **parts))
    context = make_context(load_config(config, plugins), plugins, [device])
    plugins.call("katran_accel", "diagnose", context=context)


def _some_device() -> Device:
    """A device with a MAC address, if there is one: only then programs look at those of frames, as in the guest."""
    for ifindex, name in socket.if_nameindex():
        if (link := read_link(ifindex)) is not None and any(link.mac):
            return Device(name, ifindex, ("tc_offload",))
    return Device("lo", 1, ("tc_offload",))


def write_chain(folder: Path, interface: str, strategy: str, carrier: str, *, nic: str = "", actions: str = "") -> Path:
    """Write the TOML of flow_actions and the balancer on a device with flower. nic: about the filters."""
    return chain_config(
        folder,
        interface,
        "tc_offload",
        nic,
        strategy=strategy,
        carrier=carrier,
        min_packets=10,
        # Counters of the NIC are read several times in this time.
        idle_timeout="2s",
        balancer=f'gateway_mac = "{GATEWAY_MAC}"\npin_dir = "{folder}/balancer"',
        actions=f"entries = 1024\ntargets = 64\n{actions}",
    )


def _load_chain(folder: Path, strategy: str) -> None:
    """Load the programs of a chain as a daemon does, but for the one in front of them."""
    plugins, device = PluginManager(), _some_device()
    config = load_config(write_chain(folder, device.name, strategy, "metadata"), plugins)
    context = make_context(config, plugins, [device])
    with Chains(context):
        for name in CHAIN:
            list(plugins.call(name, "diagnose", context=context))
