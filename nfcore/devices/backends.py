# SPDX-License-Identifier: Apache-2.0
"""Calls the offload backends of one device in order, and merges their results.

Rules that one backend does not take go to the next. A backend is never called for a rule that its capabilities rule
out, nor again for a shape of rules that it has called unsupported. All calls run on the device's worker, except
`unsupported`, `leave_out` and `forget_unsupported`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..api.flows import SERVICE_TAG, Anything, join_rows
from ..api.rules import INSTALLED_ROW, Action, Capabilities, Device, Outcome, Outcomes, RuleBatch
from ..hooks.manager import PluginManager
from .latency import LatencyHistograms, Operation
from .rule_counters import Counts

UNKNOWN = Capabilities(mark_width=32)
"""What a backend counts as that was not probed, or returned nothing: it drops, and takes no rules that are masked or
have VLAN tags."""
_IPV6 = 6
_FIELDS = (24, 8, 8, 4, 8)
"""Bits of `wild`, protocol, family, tags and action in the number of a shape."""
_TAG_BITS = 2
"""Bits of one tag in the number of a shape: 0 without it."""


@dataclass(frozen=True)
class RuleShapes:
    """The shapes of some rules or flows: what decides whether a backend supports them, and not which flow they are."""

    numbers: NDArray[np.int64]
    """Per row: `wild`, protocol, family, which tags there are, and action in one number."""

    @classmethod
    def of(cls, rows: NDArray[np.void], actions: NDArray[np.uint32]) -> RuleShapes:
        """Give the shapes of rows, of flows or of rules. actions: :class:`Action` of each."""
        keys, vlans = rows["key"], rows["vlans"]
        wild = keys["wild"].astype(np.int64)
        tags = (vlans != 0).astype(np.int64) + (vlans & SERVICE_TAG != 0)
        columns = (
            wild[:, 0] << 16 | wild[:, 1] << 8 | wild[:, 2],
            keys["proto"],
            rows["family"],
            tags[:, 0] << _TAG_BITS | tags[:, 1],
            actions,
        )
        numbers = np.zeros(len(rows), dtype=np.int64)
        for column, bits in zip(reversed(columns), reversed(_FIELDS), strict=True):
            numbers = numbers << bits | column
        return cls(numbers)

    def __getitem__(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> RuleShapes:
        return RuleShapes(self.numbers[which])

    @property
    def masked(self) -> NDArray[np.bool_]:
        """Which are of masked rules."""
        masked: NDArray[np.bool_] = self.numbers & (1 << _FIELDS[0]) - 1 != 0
        return masked

    @property
    def of_any_protocol(self) -> NDArray[np.bool_]:
        """Which are of rules that leave the protocol open."""
        of_any: NDArray[np.bool_] = self.numbers & Anything.PROTO != 0
        return of_any

    @property
    def protocols(self) -> NDArray[np.int64]:
        """Numbers of the IP protocols."""
        return self.numbers >> _FIELDS[0] & (1 << _FIELDS[1]) - 1

    @property
    def families(self) -> NDArray[np.int64]:
        """4 or 6."""
        return self.numbers >> sum(_FIELDS[:2]) & (1 << _FIELDS[2]) - 1

    @property
    def tagged(self) -> NDArray[np.bool_]:
        """Which are of rules that match VLAN tags."""
        tagged: NDArray[np.bool_] = self.numbers >> sum(_FIELDS[:3]) & (1 << _FIELDS[3]) - 1 != 0
        return tagged

    @property
    def drops(self) -> NDArray[np.bool_]:
        """Which are of rules that drop."""
        drops: NDArray[np.bool_] = self.numbers >> sum(_FIELDS[:4]) == Action.DROP
        return drops


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
        # Always replaced as a whole: the worker writes them, the engine reads them.
        self._capabilities: Mapping[str, Capabilities] = {}
        """The last result of :meth:`probe`."""
        self.too_narrow: Mapping[str, int] = {}
        """Backend → the bits of its marks, where these are fewer than those of nfcore's."""
        self._refused: Mapping[str, frozenset[int]] = {}
        """Backend → numbers of the shapes that it has called unsupported."""
        self.latency = LatencyHistograms()

    @property
    def names(self) -> tuple[str, ...]:
        """The backends in order. Rules and counters refer to a backend by its index here."""
        return self.device.backends

    def probe(self, width: int = 0) -> dict[str, Capabilities]:
        """Give what each backend can do here. Backends that fail or return None are missing in the result.

        width: bits of nfcore's marks. A backend whose marks are narrower counts as one that sets none: a truncated mark
        may be another target's.
        """
        found, too_narrow = {}, {}
        for backend in self.names:
            done, capabilities = self._plugins.try_call(backend, "probe_offload", device=self.device)
            if not done or capabilities is None:
                continue
            if 0 < capabilities.mark_width < width:
                too_narrow[backend] = capabilities.mark_width
                capabilities = replace(capabilities, mark_width=0)
            found[backend] = capabilities
        self._capabilities, self.too_narrow = found, too_narrow
        return found

    def leave_out(self, useless: Collection[str]) -> None:
        """Drop some of the backends. Only before the first rule: rules refer to a backend by its index."""
        useful = tuple(name for name in self.names if name not in useless)
        self.device = replace(self.device, backends=useful)

    def install(self, rules: RuleBatch) -> InstallResult:
        """Install rules. A rule that no backend takes gets the best of their outcomes: FULL, FAILED, UNSUPPORTED.

        After UNSUPPORTED, a backend is not called again for rules of the same shape.
        """
        with self.latency.time(Operation.INSTALL) as timed:
            timed.rules = len(rules)
            return self._install(rules)

    def _install(self, rules: RuleBatch) -> InstallResult:
        result = InstallResult(
            np.full(len(rules), Outcome.UNSUPPORTED, dtype=np.uint8), np.zeros(len(rules), dtype=np.uint8), []
        )
        shapes = RuleShapes.of(rules.rows, rules.rows["action"])
        left = np.arange(len(rules))
        for number, backend in enumerate(self.names):
            sent = left[~self._refuses(backend, shapes[left])]
            if not len(sent):
                continue
            batch = rules if len(sent) == len(rules) else RuleBatch(rules.rows[sent])
            outcomes = self._call(backend, "install_offload", batch)
            self._note_unsupported(backend, shapes[sent[outcomes.status == Outcome.UNSUPPORTED]])
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

    def unsupported(self, shapes: RuleShapes) -> NDArray[np.bool_]:
        """Which shapes are known to be unsupported by every backend."""
        refused = np.ones(len(shapes.numbers), dtype=bool)
        for backend in self.names:
            refused &= self._refuses(backend, shapes)
        return refused

    def forget_unsupported(self) -> None:
        """Forget what backends do not support: they are called again for all rules that they are said to take."""
        self._refused = {}

    def _refuses(self, backend: str, shapes: RuleShapes) -> NDArray[np.bool_]:
        refused = np.zeros(len(shapes.numbers), dtype=bool)
        can = self._capabilities.get(backend, UNKNOWN)
        if not can.masks:
            refused |= shapes.masked
        if not can.vlans:
            refused |= shapes.tagged
        if not can.drop:
            refused |= shapes.drops
        if not can.mark_width:
            refused |= ~shapes.drops
        if not can.ipv6:
            refused |= shapes.families == _IPV6
        if can.protocols is not None:
            refused |= ~(np.isin(shapes.protocols, can.protocols) | shapes.of_any_protocol)
        if known := self._refused.get(backend):
            refused |= np.isin(shapes.numbers, list(known))
        return refused

    def _note_unsupported(self, backend: str, shapes: RuleShapes) -> None:
        if len(shapes.numbers):
            known = self._refused.get(backend, frozenset()) | set(shapes.numbers.tolist())
            self._refused = {**self._refused, backend: known}

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
        dumped: list[NDArray[np.void]] = []
        holders: list[NDArray[np.uint8]] = []
        complete = []
        for number, backend in enumerate(self.names):
            done, rows = self._plugins.try_call(backend, "dump_offload", device=self.device)
            if not done or rows is None:
                continue
            complete.append(number)
            dumped.append(rows)
            holders.append(np.full(len(rows), number, dtype=np.uint8))
        rows = join_rows(dumped, INSTALLED_ROW)
        return Dump(rows, np.concatenate(holders) if holders else np.zeros(0, dtype=np.uint8), complete)

    def _call(self, backend: str, hook: str, rules: RuleBatch) -> Outcomes:
        done, outcomes = self._plugins.try_call(backend, hook, device=self.device, rules=rules)
        return outcomes if done else Outcomes.all(Outcome.FAILED, len(rules))
