# SPDX-License-Identifier: Apache-2.0
"""A daemon with a chain of flow_actions and the balancer, without a process and without interfaces of its own.

Its programs run by test runs, on the loopback interface's number; its NIC is an emulated one, by its pins.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import find_devices, make_context, set_up
from nfcore.daemon.chain import Chains
from nfcore.devices.worker import InlineWorker
from nfcore.engine.engine import Engine
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.flow_actions.function import FlowActions
from nfcore.plugins.flow_actions.orders import Orders

LOOPBACK = 1
CONFIG = """
[nf]
plugins = ["flow_actions", "katran_accel", "marking", "softnic", "stats"]
socket = "{folder}/nf.sock"
[[interfaces]]
name = "lo"
chain = ["flow_actions", "katran_accel"]
offload = ["softnic", "none"]
[marking]
strategy = "{strategy}"
width = 8
pool_chunk = 16
quarantine = "1s"
[offload]
min_packets = 2
max_rules = 40
grace = "100ms"
idle_timeout = "20s"
[softnic]
pins = {{ lo = "{folder}/nic" }}
[katran_accel]
lru_size = 1024
gateway_mac = "02:00:5e:00:00:fe"
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{{ address = "198.18.20.11" }}]
[[katran_accel.vips]]
address = "2001:db8:10::1"
port = 80
protocol = "tcp"
reals = [{{ address = "2001:db8:20::11" }}]
[flow_actions]
pin_dir = "{folder}/pins"
entries = 64
targets = 32
{flows}
"""


@dataclass
class Daemon:
    """One run, without a process of its own."""

    folder: Path
    clock: Any
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        self.plugins = PluginManager()
        self.config = load_config(self.folder / "nf.toml", self.plugins)
        self.context = make_context(self.config, self.plugins, find_devices(self.config))
        self.stack.enter_context(self.context.locks)
        chains = self.stack.enter_context(Chains(self.context))
        self.stack.enter_context(set_up(self.context, self.plugins))
        self.function = next(nf for nf in self.context.nfs if isinstance(nf, FlowActions))
        methods = self.context.services.methods["flow.hello"].__self__  # type: ignore[attr-defined]
        self.orders: Orders = methods._orders
        self.orders.table.clock = self.clock
        self.engine = Engine(self.context, self.plugins, {LOOPBACK: InlineWorker()}, self.clock)
        self.engine.start()
        chains.link()
        (device,) = self.context.devices
        self.program = chains.program(device)
        for nf in self.context.nfs:
            nf.attached(device)

    def turn(self) -> None:
        """Let the daemon's loop turn until nothing is to be done at once."""
        for _ in range(4):
            self.engine.poll()
            self.engine.tick()

    def reload(self) -> None:
        fresh = PluginManager()
        config = load_config(self.folder / "nf.toml", fresh)
        self.plugins.call("flow_actions", "reconfigure", config=config)
        self.engine.apply(config, {})
