# SPDX-License-Identifier: Apache-2.0
"""The offload backends of one device as one: the best first, the next for what it could not take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.rules import INSTALLED_ROW, Capabilities, Device, Outcome, Outcomes, RuleBatch
from ..hooks.manager import PluginManager
from .latency import LatencyHistograms, Operation
from .rule_counters import Counts


@dataclass
class InstallResult:
    """What became of a batch over all backends of a device."""

    status: NDArray[np.uint8]
    """:class:`Outcome` per rule, of the last backend that was asked."""
    backend: NDArray[np.uint8]
    """Index of that backend in the device's list."""
    messages: list[str]
    """What backends said, each sentence once."""
    row_messages: dict[int, str] = field(default_factory=dict)
    """Row → what the last backend that was asked said of this rule, where it did."""


@dataclass
class Removal:
    """What became of rules that were to go."""

    gone: NDArray[np.bool_]
    """Which are off the NIC now."""
    counted: Counts
    """Packets and bytes that each had counted to its end, shape (rules, 2); 0 where the backend does not tell."""


@dataclass
class Dump:
    """What the backends of a device hold for us."""

    rows: NDArray[np.void]
    """:data:`INSTALLED_ROW` per rule."""
    backend: NDArray[np.uint8]
    """Per row: index of the backend that holds it in the device's list."""
    answered: list[int]
    """Backends, by index in the device's list, whose rules are all among the rows."""


class BackendChain:
    """The offload backends of one device as one: the best first, the next for what it could not take."""

    def __init__(self, device: Device, plugins: PluginManager) -> None:
        self.device = device
        self._plugins = plugins
        # Replaced as a whole, since the worker writes it and the engine reads it.
        self._refused: frozenset[tuple[str, int, int]] = frozenset()
        self.latency = LatencyHistograms()

    @property
    def names(self) -> tuple[str, ...]:
        """The backends, the best first; rules and counters know a backend by its index here."""
        return self.device.backends

    def probe(self) -> dict[str, Capabilities]:
        """Ask each backend what it can do here; those that do not tell are taken at their word and left out."""
        told = {}
        for backend in self.device.backends:
            done, able = self._plugins.try_call(backend, "probe_offload", device=self.device)
            if done and able is not None:
                told[backend] = able
        return told

    def leave_out(self, useless: Collection[str]) -> None:
        """Go on without some of the backends. Before the first rule only: rules remember a backend by its index."""
        left = tuple(name for name in self.device.backends if name not in useless)
        self.device = replace(self.device, backends=left)

    def install(self, rules: RuleBatch) -> InstallResult:
        """Install rules; a row that no backend took gets the most hopeful outcome: FULL, FAILED, UNSUPPORTED.

        What a backend calls UNSUPPORTED it is not asked for again: rules of that family and protocol.
        """
        with self.latency.time(Operation.INSTALL) as took:
            took.rules = len(rules)
            return self._install(rules)

    def _install(self, rules: RuleBatch) -> InstallResult:
        result = InstallResult(
            np.full(len(rules), Outcome.UNSUPPORTED, dtype=np.uint8), np.zeros(len(rules), dtype=np.uint8), []
        )
        left = np.arange(len(rules))
        for number, backend in enumerate(self.device.backends):
            willing = ~self._refuses(backend, rules.rows["family"][left], rules.rows["key"]["proto"][left])
            asked = left[willing]
            if not len(asked):
                continue
            few = rules if len(asked) == len(rules) else RuleBatch(rules.rows[asked])
            outcomes = self._ask(backend, "install_offload", few)
            self._learn(backend, rules.rows[asked[outcomes.status == Outcome.UNSUPPORTED]])
            better = np.isin(outcomes.status, (Outcome.INSTALLED, Outcome.FULL))
            better |= (outcomes.status != Outcome.UNSUPPORTED) & (result.status[asked] == Outcome.UNSUPPORTED)
            result.status[asked[better]] = outcomes.status[better]
            result.backend[asked] = number
            result.messages = list(dict.fromkeys([*result.messages, *outcomes.messages.values()]))
            result.row_messages |= {
                int(asked[row]): text for row, text in outcomes.messages.items() if 0 <= row < len(asked)
            }
            left = left[result.status[left] != Outcome.INSTALLED]
            if not len(left):
                break
        return result

    def unsupported(self, families: NDArray[Any], protocols: NDArray[Any]) -> NDArray[np.bool_]:
        """Rows of a family (4, 6) and IP protocol that every backend has refused to support."""
        refused = np.ones(len(families), dtype=bool)
        for backend in self.device.backends:
            refused &= self._refuses(backend, families, protocols)
        return refused

    def forget_unsupported(self) -> None:
        """Ask again for everything."""
        self._refused = frozenset()

    def _refuses(self, backend: str, families: NDArray[Any], protocols: NDArray[Any]) -> NDArray[np.bool_]:
        refused = np.zeros(len(families), dtype=bool)
        for name, family, protocol in self._refused:
            if name == backend:
                refused |= (families == family) & (protocols == protocol)
        return refused

    def _learn(self, backend: str, rows: NDArray[np.void]) -> None:
        if len(rows):
            shapes = set(zip(rows["family"].tolist(), rows["key"]["proto"].tolist(), strict=True))
            self._refused |= {(backend, *shape) for shape in shapes}

    def remove(self, rules: RuleBatch, backend: NDArray[np.uint8]) -> Removal:
        """Remove rules, each from the backend (by index) that holds it."""
        removal = Removal(np.zeros(len(rules), dtype=bool), np.zeros((len(rules), 2), dtype=np.uint64))
        with self.latency.time(Operation.REMOVE) as took:
            took.rules = len(rules)
            for number, name in enumerate(self.device.backends):
                mine = np.flatnonzero(backend == number)
                if len(mine):
                    outcomes = self._ask(name, "remove_offload", RuleBatch(rules.rows[mine]))
                    removal.gone[mine] = np.isin(outcomes.status, (Outcome.REMOVED, Outcome.ABSENT))
                    if outcomes.counted is not None:
                        removal.counted[mine] = outcomes.counted
        return removal

    def dump(self) -> Dump:
        """All rules that the backends hold for us, of those backends that can tell."""
        with self.latency.time(Operation.DUMP) as took:
            dump = self._dump()
            took.rules = len(dump.rows)
        return dump

    def _dump(self) -> Dump:
        raw: list[NDArray[np.uint8]] = []
        holders: list[NDArray[np.uint8]] = []
        answered = []
        for number, backend in enumerate(self.device.backends):
            done, rows = self._plugins.try_call(backend, "dump_offload", device=self.device)
            if not done or rows is None:
                continue
            answered.append(number)
            # Joined as bytes: numpy's concatenate would turn the ports to the host's byte order.
            raw.append(np.ascontiguousarray(rows).view(np.uint8))
            holders.append(np.full(len(rows), number, dtype=np.uint8))
        rows = np.concatenate(raw).view(INSTALLED_ROW) if raw else np.zeros(0, dtype=INSTALLED_ROW)
        return Dump(rows, np.concatenate(holders) if holders else np.zeros(0, dtype=np.uint8), answered)

    def _ask(self, backend: str, hook: str, rules: RuleBatch) -> Outcomes:
        done, outcomes = self._plugins.try_call(backend, hook, device=self.device, rules=rules)
        return outcomes if done else Outcomes.all(Outcome.FAILED, len(rules))
