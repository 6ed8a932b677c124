# SPDX-License-Identifier: Apache-2.0
"""Calls the offload backends of one device in order, and merges their results.

Rules that one backend does not take go to the next. All calls run on the device's worker, except `unsupported`,
`leave_out` and `forget_unsupported`.
"""

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
    """What became of a batch of rules, over all backends of a device."""

    status: NDArray[np.uint8]
    """:class:`Outcome` per rule."""
    backend: NDArray[np.uint8]
    """Per rule: index in the device's list of the last backend that was called for it."""
    messages: list[str]
    """Messages of the backends, each once."""
    row_messages: dict[int, str] = field(default_factory=dict)
    """Row → message about this rule, of the last backend that gave one."""


@dataclass
class Removal:
    """What became of rules that were to be removed."""

    gone: NDArray[np.bool_]
    """Which are no longer on the NIC."""
    counted: Counts
    """Packets and bytes that each had counted to its end, shape (rules, 2); 0 where the backend returns none."""


@dataclass
class Dump:
    """nfcore's rules on a device."""

    rows: NDArray[np.void]
    """:data:`INSTALLED_ROW` per rule."""
    backend: NDArray[np.uint8]
    """Per row: index of the backend that holds it in the device's list."""
    complete: list[int]
    """Backends, by index in the device's list, that returned their rules."""


class BackendChain:
    """The offload backends of one device, in the order of `interfaces[].offload`."""

    def __init__(self, device: Device, plugins: PluginManager) -> None:
        self.device = device
        self._plugins = plugins
        self._refused: frozenset[tuple[str, int, int]] = frozenset()
        """Backend, family and protocol of unsupported rules. Always replaced: the worker writes, the engine reads."""
        self.latency = LatencyHistograms()

    @property
    def names(self) -> tuple[str, ...]:
        """The backends in order. Rules and counters refer to a backend by its index here."""
        return self.device.backends

    def probe(self) -> dict[str, Capabilities]:
        """Give what each backend can do here. Backends that fail or return None are missing in the result."""
        found = {}
        for backend in self.names:
            done, capabilities = self._plugins.try_call(backend, "probe_offload", device=self.device)
            if done and capabilities is not None:
                found[backend] = capabilities
        return found

    def leave_out(self, useless: Collection[str]) -> None:
        """Drop some of the backends. Only before the first rule: rules refer to a backend by its index."""
        useful = tuple(name for name in self.names if name not in useless)
        self.device = replace(self.device, backends=useful)

    def install(self, rules: RuleBatch) -> InstallResult:
        """Install rules. A rule that no backend takes gets the best of their outcomes: FULL, FAILED, UNSUPPORTED.

        After UNSUPPORTED, a backend is not called again for rules of the same family and protocol.
        """
        with self.latency.time(Operation.INSTALL) as timed:
            timed.rules = len(rules)
            return self._install(rules)

    def _install(self, rules: RuleBatch) -> InstallResult:
        result = InstallResult(
            np.full(len(rules), Outcome.UNSUPPORTED, dtype=np.uint8), np.zeros(len(rules), dtype=np.uint8), []
        )
        left = np.arange(len(rules))
        for number, backend in enumerate(self.names):
            refused = self._refuses(backend, rules.rows["family"][left], rules.rows["key"]["proto"][left])
            sent = left[~refused]
            if not len(sent):
                continue
            batch = rules if len(sent) == len(rules) else RuleBatch(rules.rows[sent])
            outcomes = self._call(backend, "install_offload", batch)
            self._note_unsupported(backend, rules.rows[sent[outcomes.status == Outcome.UNSUPPORTED]])
            better = np.isin(outcomes.status, (Outcome.INSTALLED, Outcome.FULL))
            better |= (outcomes.status != Outcome.UNSUPPORTED) & (result.status[sent] == Outcome.UNSUPPORTED)
            result.status[sent[better]] = outcomes.status[better]
            result.backend[sent] = number
            result.messages = list(dict.fromkeys([*result.messages, *outcomes.messages.values()]))
            result.row_messages |= {
                int(sent[row]): text for row, text in outcomes.messages.items() if 0 <= row < len(sent)
            }
            left = left[result.status[left] != Outcome.INSTALLED]
        return result

    def unsupported(self, families: NDArray[Any], protocols: NDArray[Any]) -> NDArray[np.bool_]:
        """Which rows, of a family (4, 6) and an IP protocol, are known to be unsupported by every backend."""
        refused = np.ones(len(families), dtype=bool)
        for backend in self.names:
            refused &= self._refuses(backend, families, protocols)
        return refused

    def forget_unsupported(self) -> None:
        """Forget what backends do not support: they are called again for all rules."""
        self._refused = frozenset()

    def _refuses(self, backend: str, families: NDArray[Any], protocols: NDArray[Any]) -> NDArray[np.bool_]:
        refused = np.zeros(len(families), dtype=bool)
        for name, family, protocol in self._refused:
            if name == backend:
                refused |= (families == family) & (protocols == protocol)
        return refused

    def _note_unsupported(self, backend: str, rows: NDArray[np.void]) -> None:
        families, protocols = rows["family"].tolist(), rows["key"]["proto"].tolist()
        self._refused |= {(backend, family, proto) for family, proto in zip(families, protocols, strict=True)}

    def remove(self, rules: RuleBatch, backend: NDArray[np.uint8]) -> Removal:
        """Remove rules, each from the backend (by index) that holds it."""
        removal = Removal(np.zeros(len(rules), dtype=bool), np.zeros((len(rules), 2), dtype=np.uint64))
        with self.latency.time(Operation.REMOVE) as timed:
            timed.rules = len(rules)
            for number, name in enumerate(self.names):
                mine = np.flatnonzero(backend == number)
                if len(mine):
                    outcomes = self._call(name, "remove_offload", RuleBatch(rules.rows[mine]))
                    removal.gone[mine] = np.isin(outcomes.status, (Outcome.REMOVED, Outcome.ABSENT))
                    if outcomes.counted is not None:
                        removal.counted[mine] = outcomes.counted
        return removal

    def dump(self) -> Dump:
        """Read nfcore's rules with their counters from all backends that can read them back."""
        with self.latency.time(Operation.DUMP) as timed:
            dump = self._dump()
            timed.rules = len(dump.rows)
        return dump

    def _dump(self) -> Dump:
        raw: list[NDArray[np.uint8]] = []
        holders: list[NDArray[np.uint8]] = []
        complete = []
        for number, backend in enumerate(self.names):
            done, rows = self._plugins.try_call(backend, "dump_offload", device=self.device)
            if not done or rows is None:
                continue
            complete.append(number)
            # Joined as bytes: numpy's concatenate would convert the ports to the host's byte order.
            raw.append(np.ascontiguousarray(rows).view(np.uint8))
            holders.append(np.full(len(rows), number, dtype=np.uint8))
        rows = np.concatenate(raw).view(INSTALLED_ROW) if raw else np.zeros(0, dtype=INSTALLED_ROW)
        return Dump(rows, np.concatenate(holders) if holders else np.zeros(0, dtype=np.uint8), complete)

    def _call(self, backend: str, hook: str, rules: RuleBatch) -> Outcomes:
        done, outcomes = self._plugins.try_call(backend, hook, device=self.device, rules=rules)
        return outcomes if done else Outcomes.all(Outcome.FAILED, len(rules))
