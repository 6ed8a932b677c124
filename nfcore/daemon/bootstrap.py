# SPDX-License-Identifier: Apache-2.0
"""From a configuration to set-up plugins and an engine, and back: what `run`, `trace` and `cleanup` share."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..api.config import NO_BACKEND, Config
from ..api.context import Context
from ..api.marks import MarkAllocator, StrategyInfo
from ..api.metrics import MetricFamily
from ..api.rules import Device
from ..api.state_file import State
from ..devices.worker import Worker
from ..engine.engine import Engine
from ..engine.metrics import of_hooks, of_process
from ..errors import HostError, NfcoreError, words_of
from ..hooks.manager import Fault, PluginHost

log = logging.getLogger(__name__)
CORE = "nfcore"
"""As whose figures those of the core are collected."""


def require_root(command: str) -> None:
    """Say so when the process lacks the rights; HostError."""
    if os.geteuid() != 0:
        raise HostError(f"nfcore {command} loads BPF programs and needs root: use sudo")


def find_devices(config: Config, *, all_of_them: bool = True) -> list[Device]:
    """Look up the configuration's interfaces. HostError names those that are missing, if it takes all of them."""
    there = {name: index for index, name in socket.if_nameindex()}
    missing = [
        f"interfaces[{number}].name: there is no interface {interface.name!r} in this network namespace"
        for number, interface in enumerate(config.interfaces)
        if interface.name not in there
    ]
    if missing and all_of_them:
        known = ", ".join(sorted(there))
        raise HostError("\n".join(f"{config.source}: {line} (there are: {known})" for line in missing))
    return [
        Device(
            interface.name,
            there[interface.name],
            tuple(name for name in interface.offload if name != NO_BACKEND),
        )
        for interface in config.interfaces
        if interface.name in there
    ]


def chosen_strategy(config: Config, host: PluginHost) -> tuple[str, StrategyInfo] | None:
    """Find the strategy that the configuration names, if a loaded plugin offers it, and that plugin's name."""
    for plugin, infos in host.each("marking_strategies"):
        for info in infos or ():
            if info.name == config.marking.strategy:
                return plugin, info
    return None


def state_path(config: Config) -> Path:
    """Where a run leaves notes for the next: beside the socket."""
    return Path(config.nf.socket).with_suffix(".state")


def make_context(config: Config, host: PluginHost, devices: list[Device], *, tracing: bool = False) -> Context:
    """Make the context of one run. Without a backend on any device no strategy is chosen: nothing sets marks."""
    accelerated = any(device.backends for device in devices)
    chosen = chosen_strategy(config, host) if accelerated else None
    return Context(
        config=config,
        devices=devices,
        strategy=chosen[1] if chosen else None,
        strategist=chosen[0] if chosen else None,
        marks=MarkAllocator(config.marking.width, config.marking.quarantine),
        tracing=tracing,
        state=State(None if tracing else state_path(config)),
    )


@contextmanager
def set_up(context: Context, host: PluginHost, before_each: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Set all plugins up; tear them all down, in reverse order, whatever happens.

    Unless it is for tracing, the devices are claimed first: HostError when another process drives one.
    """
    with ExitStack() as leaving:
        for device in () if context.tracing else context.devices:
            context.claims.interface(device.name, device.ifindex)
        for plugin in host.implementing("setup"):
            before_each()
            set_up_plugin(plugin, context, host, leaving)
        yield


def set_up_plugin(plugin: str, context: Context, host: PluginHost, leaving: ExitStack) -> None:
    """Set one plugin up, and let `leaving` tear it down, also when its set-up failed half-way. HostError names it."""

    def tear_down() -> None:
        try:
            host.call(plugin, "teardown")
        except Exception as error:  # noqa: BLE001 - the others must be torn down all the same
            log.error("plugin %s: teardown failed: %s", plugin, error)

    leaving.callback(tear_down)
    try:
        host.call(plugin, "setup", context=context)
    except NfcoreError:
        raise
    except Exception as error:
        log.debug("traceback", exc_info=error)
        raise HostError(f"plugin {plugin}: setup failed: {words_of(error)}") from error


def make_engine(context: Context, host: PluginHost, workers: Mapping[int, Worker]) -> Engine:
    """Make the engine, and let plugins collect everybody's figures."""
    engine = Engine(context, host, workers)

    def collect() -> Iterator[tuple[str, list[MetricFamily]]]:
        of_others = chain.from_iterable(give() for give in context.figures)
        # Those of the hooks have their names by now, so that nobody else takes them.
        named = [replace(family, samples=[]) for family in of_hooks(host)]
        yield CORE, [*engine.collect(), *of_process(context.health), *of_others, *named]
        # Whose family is another one than it was before is at fault: hence nfcore's own come first.
        yield from host.each("collect_stats")
        # The last, so that what went wrong just now is among them.
        yield CORE, list(of_hooks(host))

    def blame(plugin: str, hook: str, words: str) -> None:
        host.blame(plugin, hook, Fault.WRONG_ANSWER, words)

    context.collect, context.blame = collect, blame
    return engine
