# SPDX-License-Identifier: Apache-2.0
"""TOMLs with owners, and the plugin set up with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nfcore.api.config import Config
from nfcore.api.context import Context
from nfcore.api.marks import MarkAllocator
from nfcore.api.network_function import NetworkFunction
from nfcore.api.rules import Device
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context
from nfcore.hooks.manager import PluginManager
from nfcore_strategy_tenant.config import NAME

OWNERS = """
[[tenant_marks.owners]]
name = "blue"
block = 1
vips = ["198.18.10.0/24", "2001:db8:10::/48"]

[[tenant_marks.owners]]
name = "green"
block = 3
vips = ["198.18.11.1:80/tcp", "[2001:db8:11::1]:80/tcp"]
"""


def toml(owners: str = OWNERS, bits: int = 2, width: int = 5) -> str:
    """A TOML that has only the strategy."""
    head = f'[nf]\nplugins = ["{NAME}"]\n[marking]\nstrategy = "tenant"\nwidth = {width}\n'
    return f"{head}[{NAME}]\nbits = {bits}\n{owners}"


def load(folder: Path, text: str) -> tuple[Config, PluginManager]:
    """Load a TOML as `nfcore` does."""
    path = folder / "tenants.toml"
    path.write_text(text, encoding="utf-8")
    plugins = PluginManager()
    return load_config(path, plugins), plugins


@dataclass
class Function(NetworkFunction):
    """The part of a network function that the strategy uses: names of its targets."""

    vips: dict[int, str] = field(default_factory=dict)
    number: int = 0

    def describe(self, target: int) -> Mapping[str, str]:
        return {"vip": self.vips[target], "real": "198.18.20.11"} if target in self.vips else {}


class Run:
    """The plugin after setup, and one network function."""

    def __init__(
        self, config: Config, plugins: PluginManager, clock: Callable[[], float], quarantine: float = 1.0
    ) -> None:
        self.plugins = plugins
        self.function = Function()
        self.context: Context = make_context(config, plugins, [Device("eth1", 4, ("some_nic",))])
        self.context.marks = MarkAllocator(config.marking.width, quarantine, clock)
        plugins.call(NAME, "setup", context=self.context)
        self.context.register_nf(self.function)
