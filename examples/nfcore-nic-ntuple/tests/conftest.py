# SPDX-License-Identifier: Apache-2.0
"""The plugin with a simulated driver, set up as the daemon does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver import Driver

from nfcore.api.config import Config, InterfaceTable, MarkingTable, NfTable, OffloadTable
from nfcore.api.context import Context
from nfcore.api.rules import Device
from nfcore.daemon.bootstrap import make_context
from nfcore.hooks.manager import PluginManager
from nfcore_nic_ntuple import NAME, NicNtuplePlugin, NtupleTable

DEVICE = Device("nic0", 7, (NAME,))
Start = Callable[..., NicNtuplePlugin]


def config_for(folder: Path, **locations: str) -> Config:
    return Config(
        source="test.toml",
        nf=NfTable(plugins=[NAME], socket=str(folder / "nf.sock")),
        interfaces=[InterfaceTable(name=DEVICE.name, chain=["nf"], offload=[NAME])],
        marking=MarkingTable(carrier="rx-queue", width=3),
        offload=OffloadTable(),
        sections={NAME: NtupleTable(locations=locations)},
    )


def context_of(folder: Path, **locations: str) -> Context:
    return make_context(config_for(folder, **locations), PluginManager(), [DEVICE])


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def start(driver: Driver, tmp_path: Path) -> Iterator[Start]:
    """Set up a plugin, as a new process does; earlier ones are not torn down, as if they were killed."""
    running: list[NicNtuplePlugin] = []

    def set_up(**locations: str) -> NicNtuplePlugin:
        plugin = NicNtuplePlugin(lambda device: driver)
        plugin.setup(context_of(tmp_path, **locations))
        running.append(plugin)
        return plugin

    yield set_up
    for plugin in running:
        plugin.teardown()
