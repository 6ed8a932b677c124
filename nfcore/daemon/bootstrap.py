# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a context, plugins that are set up, and an engine: shared by `run`, `trace`, `cleanup`, …"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..api.config import NO_BACKEND, Config
from ..api.context import Context, Services
from ..api.health import Health
from ..api.marks import MarkAllocator, StrategyInfo
from ..api.metrics import MetricFamily
from ..api.network_function import missing_members
from ..api.rules import Device
from ..api.state_file import StateFile
from ..devices.worker import Worker
from ..engine.engine import Engine
from ..errors import HostError, NfcoreError, describe_error
from ..hooks.faults import Fault
from ..hooks.manager import PluginManager
from ..kernel.ethtool import namespace_with
from ..refusals import TO_LOAD, describe_lack, missing_capabilities
from .metrics import hook_metrics, process_metrics

log = logging.getLogger(__name__)
CORE = "nfcore"
"""Stands for nfcore itself where metrics have the name of their plugin."""


def require_privileges(command: str) -> None:
    """HostError names the capabilities that the process lacks, and what they are for."""
    lacking = missing_capabilities(TO_LOAD)
    if len(lacking) == len(TO_LOAD) and os.geteuid() != 0:
        raise HostError(f"nfcore {command} loads BPF programs and needs root: use sudo")
    if lacking:
        raise HostError(f"nfcore {command} {describe_lack(lacking)}")


def find_devices(config: Config, *, all_of_them: bool = True) -> list[Device]:
    """Look up the configuration's interfaces. all_of_them: HostError when one is missing, instead of leaving it out."""
    present = {name: index for index, name in socket.if_nameindex()}
    missing = [
        f"{config.source}: interfaces[{number}].name: there is no interface {interface.name!r} in this network "
        f"namespace (there are: {', '.join(sorted(present))}){_elsewhere(interface.name)}"
        for number, interface in enumerate(config.interfaces)
        if interface.name not in present and all_of_them
    ]
    if missing:
        raise HostError("\n".join(missing))
    return [
        Device(interface.name, present[interface.name], tuple(name for name in interface.offload if name != NO_BACKEND))
        for interface in config.interfaces
        if interface.name in present
    ]


def _elsewhere(name: str) -> str:
    """Say in which namespace an interface is, and how to run there; empty when it is in none that has a name."""
    namespace = namespace_with(name)
    # Not by `ip netns exec`: that has another mount namespace, whose pins disappear with it.
    return "" if namespace is None else f"; it is in {namespace.name}: run nsenter --net={namespace} nfcore …"


def find_strategy(config: Config, plugins: PluginManager) -> tuple[str, StrategyInfo] | None:
    """Find the plugin that offers the configured strategy, and the strategy; None when no loaded plugin does."""
    for plugin, infos in plugins.call_each("marking_strategies"):
        for info in infos or ():
            if info.name == config.marking.strategy:
                return plugin, info
    return None


def state_path(config: Config) -> Path:
    """The file with notes of a run for the next one: beside the socket."""
    return config.nf.beside_socket(".state")


def make_context(
    config: Config,
    plugins: PluginManager,
    devices: list[Device],
    *,
    tracing: bool = False,
    call_soon: Callable[[Callable[[], None]], None] = lambda job: job(),
) -> Context:
    """Make the context of one run. Without a backend on any device there is no strategy: nothing sets marks.

    call_soon: runs a job on the event loop's thread. The default, for commands without a loop, runs it at once.
    """
    accelerated = any(device.backends for device in devices)
    chosen = find_strategy(config, plugins) if accelerated else None
    return Context(
        config=config,
        devices=devices,
        strategy=chosen[1] if chosen else None,
        strategy_plugin=chosen[0] if chosen else None,
        marks=MarkAllocator(config.marking.width, config.marking.quarantine),
        tracing=tracing,
        services=_make_services(plugins, call_soon),
        state_file=StateFile(None if tracing else state_path(config)),
    )


@contextmanager
def set_up(context: Context, plugins: PluginManager, before_each: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Set all plugins up; at the end tear them all down, in reverse order.

    Locks socket and devices first, except for tracing: HostError when another process has one.
    """
    with ExitStack() as cleanup:
        if not context.tracing:
            lock_all(context)
        for plugin in plugins.implementing("setup"):
            before_each()
            set_up_plugin(plugin, context, plugins, cleanup)
        yield


def lock_all(context: Context) -> None:
    """Lock what belongs to one daemon alone: the socket with the files beside it, and the devices. HostError."""
    context.locks.path(Path(context.config.nf.socket), "socket")
    for device in context.devices:
        context.locks.interface(device.name, device.ifindex)


def set_up_plugin(plugin: str, context: Context, plugins: PluginManager, cleanup: ExitStack) -> None:
    """Set one plugin up. `cleanup` tears it down, also when `setup` fails half-way. HostError: it has failed."""

    def tear_down() -> None:
        try:
            plugins.call(plugin, "teardown")
        except Exception as error:  # noqa: BLE001 - the others must be torn down all the same
            log.error("plugin %s: teardown failed: %s", plugin, error)

    cleanup.callback(tear_down)
    before = len(context.nfs)
    try:
        plugins.call(plugin, "setup", context=context)
    except NfcoreError:
        raise
    except Exception as error:
        log.debug("traceback", exc_info=error)
        raise HostError(f"plugin {plugin}: setup failed: {describe_error(error)}") from error
    for nf in context.nfs[before:]:
        if missing := missing_members(nf):
            advice = "its class should have nfcore.api.network_function.NetworkFunction as its base"
            raise HostError(f"plugin {plugin}: its network function has no {', '.join(missing)}: {advice}")


def make_engine(context: Context, plugins: PluginManager, workers: Mapping[int, Worker]) -> Engine:
    """Make the engine, and add its metrics to those that are collected."""
    engine = Engine(context, plugins, workers)
    context.services.metric_sources.insert(0, engine.collect)
    return engine


def _make_services(plugins: PluginManager, call_soon: Callable[[Callable[[], None]], None]) -> Services:
    health, sources = Health(), list[Callable[[], Iterable[MetricFamily]]]()
    sources.append(lambda: process_metrics(health))

    def collect() -> Iterator[tuple[str, list[MetricFamily]]]:
        # nfcore's metrics come first, those of the hooks without samples: so their names are taken, and a plugin that
        # uses one is at fault.
        without_samples = [replace(family, samples=[]) for family in hook_metrics(plugins)]
        yield CORE, [*chain.from_iterable(source() for source in sources), *without_samples]
        yield from plugins.call_each("collect_stats")
        # The samples come last: they include faults of the calls above.
        yield CORE, list(hook_metrics(plugins))

    def report_fault(plugin: str, hook: str, text: str) -> None:
        plugins.report_fault(plugin, hook, Fault.WRONG_RESULT, text)

    return Services(collect, report_fault, call_soon, sources, health)
