# SPDX-License-Identifier: Apache-2.0
"""Reads the configuration of a running daemon again, and takes it over as a whole or refuses it as a whole."""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..api.config import Config
from ..api.steps import Steps, run_beside, run_steps
from ..config.loader import load_config
from ..engine.engine import Engine
from ..engine.event_kind import EventKind
from ..errors import ConfigError, NfcoreError, Problem, describe_error
from ..hooks.faults import Fault
from ..hooks.manager import PluginManager
from ..hooks.results import check_result
from ..logs import AUDIT

log = logging.getLogger(AUDIT)
CORE_TABLES = {"nf", "interfaces", "marking", "offload"}
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


Look: TypeAlias = Callable[[], Steps[Sequence[str]]]
"""Looks at the network anew, and gives what has changed there, a sentence each."""


def look_nowhere() -> Steps[Sequence[str]]:
    """Be a :data:`Look` that finds nothing."""
    yield from ()
    return ()


class Reloader:
    """Reloads the configuration of a running daemon while its event loop goes on: one at a time, in turn."""

    def __init__(self, engine: Engine, plugins: PluginManager, look: Look) -> None:
        self._engine, self._plugins, self._look = engine, plugins, look

    async def reload(self) -> Reloaded:
        """As :func:`reload`. When it is cancelled, it waits until no thread works for it any more."""
        async with self._engine.context.services.turn:
            return await run_beside(reload_in_steps(self._engine, self._plugins, self._look), "reload")


def reload(engine: Engine, plugins: PluginManager) -> Reloaded:
    """Read the TOML again, with the same overrides, and take it over.

    ConfigError when the TOML is wrong or changes something that takes a restart: then everything stays as it was.
    """
    return run_steps(reload_in_steps(engine, plugins))


def reload_in_steps(engine: Engine, plugins: PluginManager, look: Look = look_nowhere) -> Steps[Reloaded]:
    """Do :func:`reload` in steps, and look at the network."""
    events = engine.state.events
    try:
        done = yield from _reload(engine, plugins)
    except NfcoreError as error:
        events.note(EventKind.RELOAD, f"refused, everything stays as it was: {error}")
        raise
    done.found.extend((yield from look()))
    changed = f"changed: {', '.join(done.changed)}" if done.changed else "nothing has changed"
    waited = f", {done.waiting_ended:,} that waited" if done.waiting_ended else ""
    events.note(EventKind.RELOAD, f"{changed}; {done.flows_ended:,} accelerated flows ended{waited}")
    return done


def _reload(engine: Engine, plugins: PluginManager) -> Steps[Reloaded]:
    old = engine.context.config
    services = engine.context.services
    new, changed = yield partial(_read_again, old, plugins, frozenset(services.changed_at_run_time))
    gone = yield from _take_over(engine, old, new, [table for table in changed if table in new.sections], plugins)
    services.changed_at_run_time.difference_update(changed)
    ended = yield from engine.apply_in_steps(new, gone)
    log.info("configuration read again: %s", ", ".join(changed) if changed else "nothing has changed")
    for remark in new.remarks:
        log.warning("%s: %s", new.source, remark)
    return Reloaded(new.source, changed, ended.accelerated, ended.waiting, [str(remark) for remark in new.remarks])


def _read_again(old: Config, plugins: PluginManager, also: Set[str]) -> tuple[Config, list[str]]:
    """Give the configuration as it is in the file now, and the tables that have changed; `also`: at run time."""
    with contextlib.suppress(OSError):  # reading it says what is wrong
        if not stat.S_ISREG(Path(old.source).stat().st_mode):
            # Reading a pipe would wait for its writer.
            raise ConfigError(old.source, [Problem("", "is no regular file: it cannot be read again")])
    new = load_config(Path(old.source), PluginManager(), old.overrides)
    before, after = old.resolved(), new.resolved()
    # A table may name files, of which only the model knows what they have.
    files = {name for name, table in new.sections.items() if name in old.sections and table != old.sections[name]}
    differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changed = sorted(differing | files | also)
    problems = [
        problem for table in changed for problem in _unchangeable(table, before.get(table), after.get(table), plugins)
    ]
    if problems:
        raise ConfigError(new.source, problems)
    return new, changed


def _take_over(
    engine: Engine, old: Config, new: Config, tables: list[str], plugins: PluginManager
) -> Steps[dict[str, NDArray[np.uint64]]]:
    """Let plugins take over their tables. Returns, by network function, the targets that no longer exist.

    When a plugin refuses, the plugins before it get the old configuration again. Network functions come last: they
    end flows, which cannot be undone.
    """
    functions = [nf.name for nf in engine.context.nfs]
    done: list[str] = []
    gone: dict[str, NDArray[np.uint64]] = {}
    for plugin in sorted(tables, key=lambda name: name in functions):
        try:
            targets = yield from _reconfigure(plugin, new, plugins)
        except NfcoreError:
            for earlier in reversed(done):
                yield from _undo(earlier, old, plugins)
            raise
        done.append(plugin)
        if targets is not None:
            gone[plugin] = targets
    return gone


def _reconfigure(plugin: str, config: Config, plugins: PluginManager) -> Steps[NDArray[np.uint64] | None]:
    try:
        result = plugins.call(plugin, "reconfigure", config=config)
        if isinstance(result, Generator):
            result = yield from result
        targets: NDArray[np.uint64] | None = check_result("reconfigure", {}, result)
    except NfcoreError:
        raise
    except Exception as error:
        log.debug("traceback", exc_info=error)
        raise ConfigError(config.source, [Problem(plugin, f"could not be taken over: {error}")]) from error
    return targets


def _undo(plugin: str, old: Config, plugins: PluginManager) -> Steps[None]:
    try:
        yield from _reconfigure(plugin, old, plugins)
    except NfcoreError as error:
        plugins.report_fault(plugin, "reconfigure", Fault.RAISED, f"failed: {describe_error(error)}", error)


def _unchangeable(table: str, before: Any, after: Any, plugins: PluginManager) -> Iterator[Problem]:
    """Give the changes of a table that take a restart; `before` and `after`: as :meth:`Config.resolved` has it."""
    if table in CORE_TABLES - {"offload"} or before is None or after is None:
        yield Problem(table, "has changed, which takes a restart")
    elif table != "offload":
        if table not in plugins.implementing("reconfigure"):
            yield Problem(table, "has changed, which takes a restart: this plugin reads its table at the start")
    else:
        for key, value in after.items():
            if value != before.get(key) and key not in LIVE:
                yield Problem(f"{table}.{key}", f"is {value!r} and was {before[key]!r}; that takes a restart")
