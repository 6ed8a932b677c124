# SPDX-License-Identifier: Apache-2.0
"""Calls a backend's hooks as the engine's worker does, and checks every result before a test uses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from ..api.flows import PROTOCOL_NUMBERS, FlowMatch
from ..api.rules import Capabilities, Outcome, Outcomes, RuleBatch, split_cookies
from ..errors import UnsupportedError
from .nic import ABILITIES, FILLABLE, NicUnderTest, Seen
from .promises import PluginDriver, names
from .samples import MatchSample, sample_flow, sample_frame, sample_rules, tagged_samples

INSTALL, REMOVE, DUMP, PROBE = "install_offload", "remove_offload", "dump_offload", "probe_offload"
_POLL = 0.02
"""Seconds between two checks of a condition."""
_STATUSES = {
    INSTALL: {Outcome.INSTALLED, Outcome.FULL, Outcome.UNSUPPORTED, Outcome.FAILED},
    REMOVE: {Outcome.REMOVED, Outcome.ABSENT, Outcome.UNSUPPORTED, Outcome.FAILED},
}
"""Statuses that each hook may return for a rule."""


class BackendDriver(PluginDriver):
    """One backend in one test."""

    def __init__(self, node: pytest.Item, suite: type, nic: NicUnderTest) -> None:
        super().__init__(node, nic.name, suite)
        self.nic = nic
        self._installed: list[RuleBatch] = []
        self._capabilities: Capabilities | None = None
        self.register(nic.plugin)

    # What the NIC can do

    @property
    def capabilities(self) -> Capabilities:
        """The result of the first `probe_offload`."""
        if self._capabilities is None:
            self._capabilities = self.probe()
        return self._capabilities

    @property
    def largest_mark(self) -> int:
        """The largest mark; 0 if the NIC sets none."""
        return (1 << min(self.capabilities.mark_width, 32)) - 1

    @property
    def fillable_size(self) -> int | None:
        """Rules that fit into the table; None if the suite is not to fill it."""
        size = self.capabilities.table_size
        return self.nic.table_size or (size if size is not None and size <= FILLABLE else None)

    def needs(self, ability: str) -> Any:
        """Return an ability of the NIC under test; end the test if it is missing."""
        __tracebackhide__ = True
        value = self.fillable_size if ability == "table_size" else getattr(self.nic, ability, None)
        if value is None:
            self._end_without(ability, f"the suite cannot {ABILITIES[ability]}")
        return value

    def _end_without(self, ability: str, what: str) -> NoReturn:
        __tracebackhide__ = True
        if ability in self.nic.lacks:
            self.not_applicable(f"{what}: {self.nic.lacks[ability]}")
        pytest.skip(f"{self.name}: {what}; NicUnderTest has no {ability!r} and its `lacks` does not say why")

    def needs_marks(self) -> None:
        """End the test if the NIC sets no marks."""
        __tracebackhide__ = True
        if not self.largest_mark:
            self.not_applicable(f"it sets no marks ({self.capabilities.describe()})")

    def needs_masks(self) -> None:
        """End the test if the NIC takes no masked rules."""
        __tracebackhide__ = True
        if not self.capabilities.masks:
            self.not_applicable("it takes no masked rules (Capabilities.masks)")

    def needs_vlans(self) -> None:
        """End the test if the NIC matches no VLAN tags."""
        __tracebackhide__ = True
        if not self.capabilities.vlans:
            self.not_applicable("it matches no VLAN tags (Capabilities.vlans)")

    def needs_drop(self) -> None:
        """End the test if the NIC cannot drop."""
        __tracebackhide__ = True
        if not self.capabilities.drop:
            self.not_applicable("it cannot drop (Capabilities.drop)")

    def needs_counters(self) -> None:
        """End the test if rules do not count."""
        __tracebackhide__ = True
        if not self.capabilities.counters:
            self.not_applicable("its rules do not count (Capabilities.counters)")

    # Rules and frames

    def shapes(self) -> list[tuple[int, str]]:
        """All (family, protocol) that the NIC matches."""
        families = (4, 6) if self.capabilities.ipv6 else (4,)
        taken = self.capabilities.protocols
        protocols = [name for name in self.nic.protocols if taken is None or PROTOCOL_NUMBERS[name] in taken]
        return [(family, protocol) for family in families for protocol in protocols]

    def flows(self, count: int, first: int = 1) -> list[FlowMatch]:
        """Sample flows of the first shape, numbered from `first`."""
        family, protocol = self.shapes()[0]
        return [sample_flow(number, family, protocol) for number in range(first, first + count)]

    def rules(self, flows: Sequence[FlowMatch], first_mark: int = 1, generation: int = 1) -> RuleBatch:
        """A rule for each flow: marks count up from `first_mark` and wrap around; drops if the NIC sets no marks."""
        __tracebackhide__ = True
        if not self.largest_mark and not self.capabilities.drop:
            self.not_applicable(f"it neither marks nor drops ({self.capabilities.describe()})")
        largest = self.largest_mark
        marks = [(first_mark - 1 + number) % largest + 1 if largest else 0 for number in range(len(flows))]
        return sample_rules(flows, marks, generation)

    def send(self, flow: FlowMatch, count: int = 1) -> Seen | None:
        """Send frames of a flow; return how they arrived, None if only counters can show it."""
        __tracebackhide__ = True
        return self.needs("send")(sample_frame(flow), count)  # type: ignore[no-any-return]

    def arrivals(self, sent: FlowMatch | bytes, count: int = 1) -> Seen:
        """Send a frame, or one of a flow, and return how it arrived; end the test if that cannot be seen."""
        __tracebackhide__ = True
        frame = sent if isinstance(sent, bytes) else sample_frame(sent)
        seen: Seen | None = self.needs("send")(frame, count)
        if seen is None:
            self._end_without("arrival", f"the suite cannot {ABILITIES['arrival']}")
        return seen

    def eventually(self, holds: Callable[[], bool]) -> bool:
        """Wait until `holds()` is true, at most `nic.patience` seconds; return whether it was."""
        deadline = time.monotonic() + self.nic.patience
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    # Hooks

    def probe(self) -> Capabilities:
        """Call `probe_offload`."""
        __tracebackhide__ = True
        found = self.call(PROBE, "capabilities-are-sane", device=self.nic.device)
        self.expect(found, "returned None, not Capabilities", promise="capabilities-are-sane", hook=PROBE)
        return found  # type: ignore[no-any-return]

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules; return the result, whose form is checked."""
        __tracebackhide__ = True
        self._installed.append(rules)
        return self._batch(INSTALL, rules)

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules; return the result, whose form is checked."""
        __tracebackhide__ = True
        return self._batch(REMOVE, rules)

    def install_all(self, rules: RuleBatch) -> RuleBatch:
        """Install rules, all of which must be INSTALLED; return them."""
        __tracebackhide__ = True
        result = self.install(rules)
        installed = result.status == Outcome.INSTALLED
        if not installed.all():
            row = int(np.argmin(installed))
            wrong = f"the rule for {list(rules)[row].match} is {statuses(result)[row].name}{_message(result, row)}"
            self.broken(wrong, promise="rules-are-accepted", hook=INSTALL)
        return rules

    def install_tagged(self, family: int, protocol: str) -> list[tuple[MatchSample, RuleBatch]]:
        """Install a rule with VLAN tags for each of their samples; return those that are INSTALLED.

        With one tag all must be; those with two may be UNSUPPORTED.
        """
        __tracebackhide__ = True
        installed = []
        for sample in tagged_samples(family, protocol):
            rules = sample_rules([sample.match], min(1, self.largest_mark), vlans=sample.vlans)
            if statuses(self.install(rules)) != [Outcome.UNSUPPORTED] or not sample.vlans[1]:
                installed.append((sample, self.install_all(rules)))
        return installed

    def remove_all(self, rules: RuleBatch) -> Outcomes:
        """Remove rules, all of which must be REMOVED; return the result."""
        __tracebackhide__ = True
        result = self.remove(rules)
        wrong = f"removing {len(rules)} installed rules gives {names(statuses(result))}"
        self.expect((result.status == Outcome.REMOVED).all(), wrong, promise="removed-rules-are-gone", hook=REMOVE)
        return result

    def dump(self) -> NDArray[np.void]:
        """Call `dump_offload`; return rows of INSTALLED_ROW, those with nfcore's cookies."""
        __tracebackhide__ = True
        rows: NDArray[np.void] | None = self.call(DUMP, "dumps-are-installed-rows", device=self.nic.device)
        if rows is None or rows.ndim != 1:
            returned = "None, which means that there is no NIC" if rows is None else f"an array of shape {rows.shape}"
            self.broken(f"returned {returned}", promise="dumps-are-installed-rows", hook=DUMP)
        later = rows["last_used"] > np.uint64(time.monotonic_ns())
        self.expect(
            not later.any(),
            f"last_used is {int(rows['last_used'].max(initial=0))}, which is in the future by CLOCK_MONOTONIC",
            promise="dumps-are-installed-rows",
            hook=DUMP,
        )
        return rows[split_cookies(rows["rule"]["cookie"])[0]]

    def dump_by_cookie(self) -> dict[int, np.void]:
        """The dump as cookie → row of INSTALLED_ROW. Cookies must be unique, and of rules that the test installed."""
        __tracebackhide__ = True
        rows = self.dump()
        found = dict(zip(rows["rule"]["cookie"].tolist(), rows, strict=True))
        wrong = f"the dump has {len(rows)} rules with {len(found)} different cookies"
        self.expect(len(found) == len(rows), wrong, promise="dumps-give-back-the-rules", hook=DUMP)
        known = {cookie for batch in self._installed for cookie in batch.rows["cookie"].tolist()}
        for cookie in sorted(found.keys() - known)[:1]:
            match = FlowMatch.from_key(found[cookie]["rule"]["key"], int(found[cookie]["rule"]["family"]))
            wrong = f"the dump has a rule for {match} with the cookie {cookie:#x}, which was not installed"
            self.broken(wrong, promise="dumps-give-back-the-rules", hook=DUMP)
        return found

    def rows_of(self, rules: RuleBatch) -> list[np.void]:
        """The rows of INSTALLED_ROW of some rules, all of which must be in the dump."""
        __tracebackhide__ = True
        found = self.dump_by_cookie()
        for cookie in rules.rows["cookie"].tolist():
            wrong = f"the rule with cookie {cookie:#x} is missing"
            self.expect(cookie in found, wrong, promise="dumps-give-back-the-rules", hook=DUMP)
        return [found[cookie] for cookie in rules.rows["cookie"].tolist()]

    def counts(self, rules: RuleBatch) -> NDArray[np.int64]:
        """Packets and bytes of some rules, shape (rules, 2); all must be in the dump."""
        __tracebackhide__ = True
        counts = [(int(row["packets"]), int(row["bytes"])) for row in self.rows_of(rules)]
        return np.array(counts, dtype=np.int64).reshape(len(rules), 2)

    def _batch(self, hook: str, rules: RuleBatch) -> Outcomes:
        __tracebackhide__ = True
        before = rules.rows.copy()
        result = self.call(hook, "every-rule-has-a-status", device=self.nic.device, rules=rules)
        for wrong in _faults(hook, result, len(rules)):
            self.broken(wrong, promise="every-rule-has-a-status", hook=hook)
        changed = (rules.rows != before).any() if len(rules) else False
        self.expect(not changed, "the hook has written to the batch", promise="every-rule-has-a-status", hook=hook)
        self.nic.messages += result.messages.values()
        return result  # type: ignore[no-any-return]

    # Restart and end

    def restart(self) -> None:
        """Simulate a new process: continue with the plugin object that `nic.restart` sets up."""
        __tracebackhide__ = True
        try:
            found = self.needs("restart")()
        except (UnsupportedError, pytest.skip.Exception):
            raise
        except Exception as error:  # noqa: BLE001 - reported as a fault of the plugin
            wrong = f"setup, with rules of an earlier run on the NIC, raised {type(error).__name__}: {error}"
            self.broken(wrong, promise="rules-outlive-their-process", why=error)
        if found is not None:
            self.nic.plugin = found
        self.register(self.nic.plugin)

    def clean_up(self) -> None:
        """Remove all that the test installed, without checks, so that the next test begins with an empty NIC."""
        for batch in self._installed:
            with suppress(Exception):
                self.plugins.call(self.name, REMOVE, device=self.nic.device, rules=batch)


def statuses(result: Outcomes) -> list[Outcome]:
    """The statuses of a result."""
    return [Outcome(status) for status in result.status.tolist()]


def other_protocols(protocols: Iterable[str]) -> list[int]:
    """Numbers of some IP protocols that are not among `protocols`."""
    known = {PROTOCOL_NUMBERS[name] for name in protocols}
    return [number for number in (1, 6, 17, 132) if number not in known]


def _message(result: Outcomes, row: int) -> str:
    message = result.messages.get(row) or next(iter(result.messages.values()), "")
    return f" ({message})" if message else ""


def _faults(hook: str, result: Outcomes, length: int) -> Iterator[str]:
    """Faults of a result for a batch of `length` rules, beyond those that `check_result` finds."""
    status = result.status
    if not isinstance(status, np.ndarray) or status.dtype != np.uint8:
        kind = status.dtype if isinstance(status, np.ndarray) else type(status).__name__
        yield f"Outcomes.status is {kind}, not an array of uint8"
        return
    if wrong := set(statuses(result)) - _STATUSES[hook]:
        yield f"returned {names(wrong)}, which this hook must not return"
    for row, message in result.messages.items():
        if not isinstance(row, int | np.integer) or not 0 <= row < length or not isinstance(message, str):
            yield f"Outcomes.messages has {row!r}: {message!r}; should be texts for rows 0 to {length - 1}"
    if result.counted is not None and result.counted.dtype != np.uint64:
        yield f"Outcomes.counted is {result.counted.dtype}; should be uint64"
