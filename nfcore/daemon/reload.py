# SPDX-License-Identifier: Apache-2.0
"""Another configuration for a running daemon: compared, refused as a whole or taken over as a whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.config import Config
from ..config.loader import load_config
from ..engine.engine import Engine
from ..engine.event_kind import EventKind
from ..errors import ConfigError, NfcoreError, Problem
from ..hooks.manager import PluginManager
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
    """What a reload did."""

    source: str
    """The TOML that was read: the one that the daemon was started with."""
    changed: list[str]
    """Tables of the TOML that are another now."""
    flows_ended: int
    """Accelerated flows whose target exists no more."""
    waiting_ended: int
    """Flows that waited for a rule to a target that exists no more: they were never accelerated."""


def reload(engine: Engine, plugins: PluginManager) -> Reloaded:
    """Read the TOML again, with the same overrides, and go on with it.

    ConfigError, and everything stays as it was, when the TOML is wrong or changes what only a restart can.
    """
    events = engine.state.events
    try:
        done = _reload(engine, plugins)
    except NfcoreError as error:
        events.note(EventKind.RELOAD, f"refused, everything stays as it was: {error}")
        raise
    changed = f"changed: {', '.join(done.changed)}" if done.changed else "nothing has changed"
    waited = f", {done.waiting_ended:,} that waited" if done.waiting_ended else ""
    events.note(EventKind.RELOAD, f"{changed}; {done.flows_ended:,} accelerated flows ended{waited}")
    return done


def _reload(engine: Engine, plugins: PluginManager) -> Reloaded:
    old = engine.context.config
    if Path(old.source).exists() and not Path(old.source).is_file():
        # Whoever reads a pipe waits for whoever writes it, and nothing else would go on meanwhile.
        raise ConfigError(old.source, [Problem("", "is no regular file: it cannot be read again")])
    fresh = PluginManager()
    new = load_config(Path(old.source), fresh, old.overrides)
    changed = list(_changed(old, new))
    problems = [problem for table in changed for problem in _unchangeable(table, old, new, plugins)]
    if problems:
        raise ConfigError(new.source, problems)
    gone = _take_over(engine, old, new, [table for table in changed if table in new.sections], plugins)
    ended = engine.apply(new, gone)
    log.info("configuration read again: %s", ", ".join(changed) if changed else "nothing has changed")
    return Reloaded(new.source, changed, ended.accelerated, ended.waiting)


def _take_over(
    engine: Engine, old: Config, new: Config, tables: list[str], plugins: PluginManager
) -> dict[str, NDArray[np.uint64]]:
    """Let plugins take over their tables; by network function, its targets that exist no more.

    Network functions come last: what they have ended cannot be undone, what others have taken over is given back when
    a later one refuses.
    """
    functions = [nf.name for nf in engine.context.nfs]
    done: list[str] = []
    gone: dict[str, NDArray[np.uint64]] = {}
    for plugin in sorted(tables, key=lambda name: name in functions):
        try:
            targets = _reconfigure(plugin, new, plugins)
        except ConfigError:
            for earlier in reversed(done):
                plugins.try_call(earlier, "reconfigure", config=old)
            raise
        done.append(plugin)
        if targets is not None:
            gone[plugin] = targets
    return gone


def _reconfigure(plugin: str, config: Config, plugins: PluginManager) -> NDArray[np.uint64] | None:
    try:
        targets: NDArray[np.uint64] | None = plugins.call(plugin, "reconfigure", config=config)
    except NfcoreError:
        raise
    except Exception as error:
        log.debug("traceback", exc_info=error)
        raise ConfigError(config.source, [Problem(plugin, f"could not be taken over: {error}")]) from error
    return targets


def _changed(old: Config, new: Config) -> Iterator[str]:
    before, after = old.resolved(), new.resolved()
    yield from (name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name))


def _unchangeable(table: str, old: Config, new: Config, plugins: PluginManager) -> Iterator[Problem]:
    """What of a table that has changed cannot take effect in a running daemon."""
    if table in new.sections and table in old.sections:
        if table not in plugins.implementing("reconfigure"):
            yield Problem(table, "has changed, which takes a restart: this plugin reads its table at the start")
        return
    if table != "offload":
        yield Problem(table, "has changed, which takes a restart")
        return
    before, after = old.resolved()[table], new.resolved()[table]
    for key in _different(before, after):
        if key not in LIVE:
            yield Problem(f"{table}.{key}", f"is {after[key]!r} and was {before[key]!r}; that takes a restart")


def _different(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    yield from (key for key in after if before.get(key) != after[key])
