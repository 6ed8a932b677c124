# SPDX-License-Identifier: Apache-2.0
"""Each hook works for the guide's example as the guide describes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nfcore.api.config import Config, InterfaceTable
from nfcore.api.context import Context
from nfcore.api.findings import Status
from nfcore.api.flows import FlowBatch, FlowMatch
from nfcore.api.json_rows import materialize
from nfcore.api.marks import MarkState
from nfcore.api.rules import Device, Outcome, Rule, RuleBatch, SetMark
from nfcore.api.state_file import StateFile
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context, make_engine, set_up
from nfcore.daemon.preconditions import preconditions, require
from nfcore.devices.backends import BackendChain
from nfcore.errors import ConfigError, HostError
from nfcore.hooks import discovery
from nfcore.hooks.manager import PluginManager
from nfcore.plugins.stats.registry import Registry
from tests.unit.docs.guide import run_example
from tests.unit.engine.world import World

DEVICE = Device("eth1", 4, ("printing_nic",))
NAME = "printing_nic"


def plugin_of(hook: str, name: str) -> Any:
    """The plugin of a hook's example."""
    return run_example(hook)[name]()


def manager_with(plugin: object, name: str = NAME) -> PluginManager:
    plugins = PluginManager()
    plugins.register(plugin, name)
    return plugins


def flows(*targets: int) -> FlowBatch:
    batch = FlowBatch.empty(len(targets))
    for number, row in enumerate(batch.rows):
        flow = FlowMatch.parse(f"198.18.1.2:{1000 + number} > 198.18.10.1:80/tcp")
        row["key"], row["family"] = flow.to_key(), flow.family
    batch.rows["nf"], batch.rows["target"] = 1, targets
    return batch


def rules(*cookies: int) -> RuleBatch:
    text = "198.18.1.2:{} > 198.18.10.1:80/tcp"
    return RuleBatch.of([Rule(FlowMatch.parse(text.format(1000 + n)), SetMark(n), n) for n in cookies])


def with_backend(config: Config, **marking: Any) -> Config:
    interface = InterfaceTable(name="eth1", chain=["nf"], offload=[NAME])
    return replace(config, interfaces=[interface], marking=config.marking.model_copy(update=marking))


# Flows and marks


def test_on_new_flow(config: Config) -> None:
    world = World(config, "dest-id", {"nic": 8})
    world.plugins.register(plugin_of("on_new_flow", "NoQuic"), "no_quic")
    world.start()
    world.report(1, 2, text="198.18.1.2:{} > 198.18.10.1:443/udp")
    world.report(3, text="198.18.1.2:{} > 198.18.10.1:443/tcp")
    assert world.held() == [3]
    assert world.reasons() == {"plugin_64": 2}


def strategy(config: Config, chosen: str = "pairs") -> tuple[PluginManager, Context]:
    plugins = manager_with(plugin_of("allocate_mark", "Pairs"), "pairs")
    context = make_context(with_backend(config, strategy=chosen, width=2, quarantine=0.0), plugins, [DEVICE])
    plugins.call("pairs", "setup", context=context)
    return plugins, context


def test_allocate_mark(config: Config) -> None:
    plugins, _ = strategy(config)
    assert plugins.call_first("allocate_mark", batch=flows(7, 8, 7))[1].tolist() == [1, 2, 1]
    assert plugins.call_first("allocate_mark", batch=flows(9, 8, 10))[1].tolist() == [3, 2, 0]
    other, _ = strategy(config, "dest-id")
    assert other.call_first("allocate_mark", batch=flows(7))[1] is None


def test_marking_strategies(config: Config) -> None:
    _, context = strategy(config)
    assert context.strategy is not None
    assert context.strategy.name == "pairs"


def test_release_mark(config: Config) -> None:
    plugins, context = strategy(config)
    plugins.call_first("allocate_mark", batch=flows(7, 8, 9))[1]
    list(plugins.call_each("release_mark", marks=np.array([2], np.uint32)))
    assert context.marks.count(MarkState.QUARANTINED) == 1
    assert plugins.call_first("allocate_mark", batch=flows(10, 7))[1].tolist() == [2, 1]


# The NIC


def test_install_offload(capsys: pytest.CaptureFixture[str]) -> None:
    nic = plugin_of("install_offload", "PrintingNic")
    nic.size = 3
    backends = BackendChain(DEVICE, manager_with(nic))
    result = backends.install(rules(1, 2, 3, 4))
    assert result.status.tolist() == [Outcome.INSTALLED] * 3 + [Outcome.FULL]
    assert "eth1: 198.18.1.2:1001 > 198.18.10.1:80/tcp gets SetMark(mark=1)" in capsys.readouterr().out
    assert backends.install(rules(1)).status.tolist() == [Outcome.INSTALLED]


def test_remove_offload() -> None:
    plugins = manager_with(plugin_of("remove_offload", "PrintingNic"))
    plugins.call(NAME, "install_offload", device=DEVICE, rules=rules(1, 2))
    done, outcomes = plugins.try_call(NAME, "remove_offload", device=DEVICE, rules=rules(2, 5))
    assert done
    assert outcomes.status.tolist() == [Outcome.REMOVED, Outcome.ABSENT]


def test_dump_offload() -> None:
    backends = BackendChain(DEVICE, manager_with(plugin_of("dump_offload", "PrintingNic")))
    backends.install(rules(1, 2))
    assert list(RuleBatch(np.ascontiguousarray(backends.dump().rows["rule"]))) == list(rules(1, 2))


def test_probe_offload() -> None:
    found = BackendChain(DEVICE, manager_with(plugin_of("probe_offload", "PrintingNic"))).probe()
    assert found[NAME].describe() == "marks of 16 bits, IPv6, drop, no counters, room for 16 rules"


# The network function


def test_publish_marks() -> None:
    echo = plugin_of("publish_marks", "Echo")
    done, stands = manager_with(echo).try_call(
        NAME, "publish_marks", batch=flows(7, 8), marks=np.array([1, 2], np.uint32)
    )
    assert done
    assert stands.tolist() == [True, False]
    assert echo.entries == {1: 7}


def test_retire_marks() -> None:
    echo = plugin_of("retire_marks", "Echo")
    echo.entries = {1: 7, 2: 7}
    assert manager_with(echo).try_call(NAME, "retire_marks", nf=1, marks=np.array([2, 3], np.uint32)) == (True, None)
    assert echo.entries == {1: 7}


def test_restore_flows() -> None:
    echo = plugin_of("restore_flows", "Echo")
    assert manager_with(echo).try_call(NAME, "restore_flows", batch=flows(7, 8)) == (True, None)
    assert echo.known == ["198.18.1.2:1000 > 198.18.10.1:80/tcp"]


def test_trace_packet() -> None:
    plugins = manager_with(plugin_of("trace_packet", "Reflects"))
    trace = plugins.call(NAME, "trace_packet", nf=1, frame=bytes(range(20)), mark=5)
    assert (trace.path, trace.output[:12]) == ("fast", bytes(range(6, 12)) + bytes(range(6)))


def test_benchmark() -> None:
    assert dict(manager_with(plugin_of("benchmark", "NotMeasured")).call_each("benchmark")) == {NAME: None}


# Metrics


def test_collect_stats(config: Config) -> None:
    plugins = manager_with(plugin_of("collect_stats", "PaperStats"))
    context = make_context(config, plugins, [])
    make_engine(context, plugins, {})
    registry = Registry()
    for _, families in context.services.collect():
        registry.add(families)
    found = {metric["name"]: metric for metric in materialize(registry.as_rows())["metrics"]}
    assert found["nfcore_printing_nic_sheets_total"]["samples"] == [{"labels": {"tray": "upper"}, "value": 0}]


# The life of the plugin itself


def run_with(plugin: object, config: Config, work: Callable[[Context], None]) -> None:
    plugins = manager_with(plugin)
    context = make_context(config, plugins, [DEVICE], tracing=True)
    with set_up(context, plugins):
        work(context)


def load(path: Path, text: str, plugin: object, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Load a TOML that names the plugin, as if it were installed."""
    plugins = manager_with(plugin)
    monkeypatch.setattr(discovery, "installed", (lambda: {NAME: None}))
    path.write_text(f'[nf]\nplugins = ["{NAME}"]\n{text}')
    return load_config(path, plugins)


def test_config_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = plugin_of("config_section", "Configured")
    config = load(tmp_path / "nf.toml", f'[{NAME}]\npaper = "A3"\n', plugin, monkeypatch)
    run_with(plugin, config, lambda context: None)
    assert plugin.paper == "A3"
    with pytest.raises(ConfigError, match=rf"{NAME}\.papre: unknown key; did you mean 'paper'\?"):
        load(tmp_path / "wrong.toml", f'[{NAME}]\npapre = "A3"\n', plugin, monkeypatch)


def test_setup(config: Config) -> None:
    def greet(context: Context) -> None:
        assert context.services.methods["greet"]({}) == "hello from eth1"

    run_with(plugin_of("setup", "Greeter"), config, greet)


def test_teardown(config: Config) -> None:
    plugin = plugin_of("teardown", "Holder")
    handles = []
    run_with(plugin, config, lambda context: handles.append(plugin.handle))
    assert plugin.handle is None
    assert handles[0].closed


def test_reconfigure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = plugin_of_reconfigure()
    config = load(tmp_path / "nf.toml", f'[{NAME}]\npaper = "A5"\n', plugin, monkeypatch)
    assert manager_with(plugin).call(NAME, "reconfigure", config=config) is None
    assert plugin.paper == "A5"


def plugin_of_reconfigure() -> Any:
    """The example of `reconfigure`, whose table is that of `config_section`."""
    return run_example("reconfigure", "config_section")["Sized"]()


def test_cleanup(config: Config, tmp_path: Path) -> None:
    plugins = manager_with(plugin_of("cleanup", "Sweeps"))
    context = make_context(config, plugins, [])
    context.state_file = StateFile(tmp_path / "nf.state")
    context.state_file.set("printing_nic.sheet", 1)
    assert list(plugins.call(NAME, "cleanup", context=context)) == ["printing_nic: removed the last sheet"]
    assert list(plugins.call(NAME, "cleanup", context=context)) == []


def test_preconditions(config: Config) -> None:
    plugins = manager_with(plugin_of("preconditions", "Careful"))
    with pytest.raises(HostError, match="printing_nic: ink: there is none: change the cartridge"):
        require(preconditions(make_context(config, plugins, []), plugins))
    plugins.plugin(NAME).ink = 20  # type: ignore[attr-defined]
    found = {finding.what: finding.found for finding in preconditions(make_context(config, plugins, []), plugins)}
    assert found["printing_nic: ink"] == "20 %"


def test_diagnose(config: Config) -> None:
    plugins = manager_with(plugin_of("diagnose", "Doctor"))
    context = make_context(config, plugins, [])
    ((_, findings),) = plugins.call_each("diagnose", context=context)
    assert [(finding.status, finding.advice) for finding in findings] == [(Status.FAULT, "fill the upper tray")]


def test_register_commands() -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    manager_with(plugin_of("register_commands", "Commands")).call(NAME, "register_commands", app=app)
    done = CliRunner().invoke(app, ["feed-paper", "--sheets", "3"])
    assert (done.exit_code, done.output) == (0, "fed 3\n")
