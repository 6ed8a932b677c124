# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration of a running daemon again, and takes it over as a whole or refuses it as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..api.config import Config
from ..config.loader import load_config
from ..engine.engine import Engine
from ..engine.event_kind import EventKind
from ..errors import ConfigError, NfcoreError, Problem
from ..hooks.manager import PluginManager
from ..hooks.results import check_result
from ..logs import AUDIT

log = logging.getLogger(AUDIT)
LIVE = {
    "min_rate",
    "exclude",
    "max_share",
    "inserts_per_second",
    "insert_burst",
    "max_rules",
    "waiting",
    "remembered",
    "idle_timeout",
    "counter_lag",
    "grace",
}
"""Keys of `[offload]` that take effect at once."""


@dataclass(frozen=True)
class Reloaded:
    """The result of a reload."""

    source: str
    """The TOML that was read: the one with which the daemon was started."""
    changed: list[str]
    """Tables of the TOML that have changed."""
    flows_ended: int
    """Accelerated flows whose target no longer exists."""
    waiting_ended: int
    """Flows that waited for a rule, and whose target no longer exists."""
    warnings: list[str]
    """What is allowed in the TOML and hardly meant."""
    found: list[str] = field(default_factory=list)
    """What was found changed in the network, a sentence each: reloading looks at next hops and addresses anew."""


def reload(engine: Engine, plugins: PluginManager, look: Callable[[], Sequence[str]] = lambda: ()) -> Reloaded:
    """Read the TOML again, with the same overrides, and take it over.

    look: looks at the network anew and gives what has changed there. ConfigError when the TOML is wrong or changes
    something that takes a restart: then everything stays as it was.
    """
    events = engine.state.events
    try:
        done = _reload(engine, plugins)
    except NfcoreError as error:
        events.note(EventKind.RELOAD, f"refused, everything stays as it was: {error}")
        raise
    done.found.extend(look())
    changed = f"changed: {', '.join(done.changed)}" if done.changed else "nothing has changed"
    waited = f", {done.waiting_ended:,} that waited" if done.waiting_ended else ""
    events.note(EventKind.RELOAD, f"{changed}; {done.flows_ended:,} accelerated flows ended{waited}")
    return done


def _reload(engine: Engine, plugins: PluginManager) -> Reloaded:
    old = engine.context.config
    if Path(old.source).exists() and not Path(old.source).is_file():
        # Reading a pipe would wait for its writer, and block the event loop.
        raise ConfigError(old.source, [Problem("", "is no regular file: it cannot be read again")])
    fresh = PluginManager()
    new = load_config(Path(old.source), fresh, old.overrides)
    changed = _changed(old, new)
    problems = [problem for table in changed for problem in _unchangeable(table, old, new, plugins)]
    if problems:
        raise ConfigError(new.source, problems)
    gone = _take_over(engine, old, new, [table for table in changed if table in new.sections], plugins)
    ended = engine.apply(new, gone)
    log.info("configuration read again: %s", ", ".join(changed) if changed else "nothing has changed")
    for remark in new.remarks:
        log.warning("%s: %s", new.source, remark)
    return Reloaded(new.source, changed, ended.accelerated, ended.waiting, [str(remark) for remark in new.remarks])


def _take_over(
    engine: Engine, old: Config, new: Config, tables: list[str], plugins: PluginManager
) -> dict[str, NDArray[np.uint64]]:
    """Let plugins take over their tables. Returns, by network function, the targets that no longer exist.

    When a plugin refuses, the plugins before it get the old configuration again. Network functions come last: they
    end flows, which cannot be undone.
    """
    functions = [nf.name for nf in engine.context.nfs]
    done: list[str] = []
    gone: dict[str, NDArray[np.uint64]] = {}
    for plugin in sorted(tables, key=lambda name: name in functions):
        try:
            targets = _reconfigure(plugin, new, plugins)
        except NfcoreError:
            for earlier in reversed(done):
                plugins.try_call(earlier, "reconfigure", config=old)
            raise
        done.append(plugin)
        if targets is not None:
            gone[plugin] = targets
    return gone


def _reconfigure(plugin: str, config: Config, plugins: PluginManager) -> NDArray[np.uint64] | None:
    try:
        result = plugins.call(plugin, "reconfigure", config=config)
        targets: NDArray[np.uint64] | None = check_result("reconfigure", {}, result)
    except NfcoreError:
        raise
    except Exception as error:
        log.debug("traceback", exc_info=error)
        raise ConfigError(config.source, [Problem(plugin, f"could not be taken over: {error}")]) from error
    return targets


def _changed(old: Config, new: Config) -> list[str]:
    """Names of the tables that have changed."""
    before, after = old.resolved(), new.resolved()
    return [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def _unchangeable(table: str, old: Config, new: Config, plugins: PluginManager) -> Iterator[Problem]:
    """Give the changes of a table that take a restart."""
    if table in new.sections and table in old.sections:
        if table not in plugins.implementing("reconfigure"):
            yield Problem(table, "has changed, which takes a restart: this plugin reads its table at the start")
        return
    if table != "offload":
        yield Problem(table, "has changed, which takes a restart")
        return
    before, after = old.resolved()[table], new.resolved()[table]
    for key, value in after.items():
        if value != before.get(key) and key not in LIVE:
            yield Problem(f"{table}.{key}", f"is {value!r} and was {before[key]!r}; that takes a restart")
