# SPDX-License-Identifier: Apache-2.0
"""An emulated NIC by its pins, without interfaces to sit on, and the plugin set up over it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nfcore.api.rules import Device
from nfcore.bench.testbed import config_text
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context, set_up_plugin
from nfcore.hooks.manager import PluginManager
from nfcore.kernel import Map, Program, XdpAction, ensure_bpffs
from nfcore.plugins.softnic.layouts import LINKS_SPEC, SHAPES_SPEC, STATS_SPEC, NicCounter, rules_spec
from nfcore.plugins.softnic.nic import load_program
from nfcore.testing import Seen

TABLE = 8
VIP = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }]
"""


@contextmanager
def plugin_of(folder: Path, interface: str = "eth1", none: str = "") -> Iterator[tuple[PluginManager, Device]]:
    """The plugin, set up for eth1 by a configuration."""
    config, plugins, device = folder / "nf.toml", PluginManager(), Device("eth1", 4, ("softnic",))
    text = config_text(folder, "katran_accel", "softnic", f'[softnic.pins]\n{interface} = "{folder}/nic"', VIP)
    config.write_text(text.replace('["softnic"]', f'["softnic"{none}]'))
    context = make_context(load_config(config, plugins), plugins, [device])
    with context.locks, ExitStack() as leaving:
        set_up_plugin("softnic", context, plugins, leaving)
        yield plugins, device


class Pins:
    """A NIC's maps pinned in a folder, as `nfcore softnic create` does, without interfaces to sit on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = 0
        self.stats: Map | None = None
        ensure_bpffs(folder)

    def make(self, size: int = TABLE) -> None:
        self.size = size
        with Map.create(rules_spec(size)) as table:
            table.pin(self.folder / "softnic_rules")
        with Map.create(SHAPES_SPEC) as shapes:
            shapes.pin(self.folder / "softnic_shapes")
        self.stats = Map.create(STATS_SPEC)
        self.stats.pin(self.folder / "softnic_stats")

    def count(self, counter: NicCounter, packets: int) -> None:
        assert self.stats is not None
        self.stats.update(int(counter), packets)

    def remove(self) -> None:
        for pin in ("softnic_rules", "softnic_shapes", "softnic_stats"):
            (self.folder / pin).unlink(missing_ok=True)
        if self.stats is not None:
            self.stats.close()
            self.stats = None


@contextmanager
def wire_of(pins: Pins) -> Iterator[Callable[[bytes, int], Seen]]:
    """The NIC's program over the pinned table: puts frames on the wire, by test runs."""
    with ExitStack() as opened:
        specs = (rules_spec(pins.size), SHAPES_SPEC, STATS_SPEC)
        maps = {spec.name: Map.open_pinned(pins.folder / spec.name, spec) for spec in specs}
        maps["softnic_links"] = Map.create(LINKS_SPEC)
        for each in maps.values():
            opened.enter_context(each)
        for link in (0, 1):
            maps["softnic_links"].update(link, 1)  # towards the loopback interface: a test run redirects nothing
        program: Program = opened.enter_context(load_program("softnic_wire", maps))

        def send(frame: bytes, count: int) -> Seen:
            marks: dict[int, int] = {}
            dropped = 0
            for _ in range(count):
                run = program.test_run(frame)
                if run.verdict is XdpAction.DROP:
                    dropped += 1
                    continue
                assert run.verdict is XdpAction.REDIRECT
                (mark,) = struct.unpack("=I", run.metadata) if run.metadata else (0,)
                marks[mark] = marks.get(mark, 0) + 1
            return Seen(marks, dropped)

        yield send
