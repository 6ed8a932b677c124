# SPDX-License-Identifier: Apache-2.0
"""A backend as the engine's worker drives it: hooks called one by one, every answer looked at before it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ..api.flows import PROTOCOL_NUMBERS, FlowMatch
from ..api.rules import Capabilities, Outcome, Outcomes, RuleBatch, split_cookies
from ..errors import UnsupportedError
from .nic import ABILITIES, FILLABLE, NicUnderTest, Seen
from .promises import Examination, names
from .samples import sample_flow, sample_frame, sample_rules

INSTALL, REMOVE, DUMP, PROBE = "install_offload", "remove_offload", "dump_offload", "probe_offload"
_POLL = 0.02
_ANSWERS = {
    INSTALL: {Outcome.INSTALLED, Outcome.FULL, Outcome.UNSUPPORTED, Outcome.FAILED},
    REMOVE: {Outcome.REMOVED, Outcome.ABSENT, Outcome.UNSUPPORTED, Outcome.FAILED},
}
"""What each hook may say of a rule."""


class BackendDriver(Examination):
    """One backend before one test."""

    def __init__(self, node: pytest.Item, suite: type, nic: NicUnderTest) -> None:
        super().__init__(node, nic.name, suite)
        self.nic = nic
        self._sent: list[RuleBatch] = []
        self._capabilities: Capabilities | None = None
        self.register(nic.plugin)

    # What the NIC can do

    @property
    def capabilities(self) -> Capabilities:
        """Give what the NIC says of itself."""
        if self._capabilities is None:
            self._capabilities = self.probe()
        return self._capabilities

    @property
    def marks(self) -> int:
        """The largest mark, 0 without any."""
        return (1 << min(self.capabilities.mark_width, 32)) - 1

    @property
    def size(self) -> int | None:
        """Rules that fit, where that many may be tried."""
        told = self.capabilities.table_size
        return self.nic.table_size or (told if told is not None and told <= FILLABLE else None)

    def needs(self, ability: str) -> Any:
        """Give an ability of the NIC under test, or end the test for want of it."""
        __tracebackhide__ = True
        there = self.size if ability == "table_size" else getattr(self.nic, ability, None)
        if there is None:
            self._lack(ability, f"its NIC cannot {ABILITIES[ability]}")
        return there

    def _lack(self, ability: str, what: str) -> None:
        __tracebackhide__ = True
        if ability in self.nic.lacks:
            self.not_applicable(f"{what}: {self.nic.lacks[ability]}")
        pytest.skip(f"{self.name}: {what}; NicUnderTest has no {ability!r} and its `lacks` does not say why")

    def needs_marks(self) -> None:
        """End the test where the NIC marks nothing."""
        __tracebackhide__ = True
        if not self.marks:
            self.not_applicable(f"it says that it sets no marks ({self.capabilities.describe()})")

    def needs_counters(self) -> None:
        """End the test where rules do not count."""
        __tracebackhide__ = True
        if not self.capabilities.counters:
            self.not_applicable("it says that its rules do not count (Capabilities.counters)")

    # Rules and frames

    def shapes(self) -> list[tuple[int, str]]:
        """Give the families and protocols that it matches."""
        families = (4, 6) if self.capabilities.ipv6 else (4,)
        return [(family, protocol) for family in families for protocol in self.nic.protocols]

    def flows(self, count: int, first: int = 1) -> list[FlowMatch]:
        """Give flows of a shape that it matches."""
        family, protocol = self.shapes()[0]
        return [sample_flow(number, family, protocol) for number in range(first, first + count)]

    def rules(self, flows: Sequence[FlowMatch], first_mark: int = 1, generation: int = 1) -> RuleBatch:
        """Give a rule for each flow: marks that count up and begin anew, or drops where it sets none."""
        __tracebackhide__ = True
        if not self.marks and not self.capabilities.drop:
            self.not_applicable(f"it says that it neither marks nor drops ({self.capabilities.describe()})")
        most = self.marks
        marks = [(first_mark - 1 + number) % most + 1 if most else 0 for number in range(len(flows))]
        return sample_rules(flows, marks, generation)

    def send(self, flow: FlowMatch, count: int = 1) -> Seen | None:
        """Put frames of a flow on the wire."""
        __tracebackhide__ = True
        return self.needs("send")(sample_frame(flow), count)  # type: ignore[no-any-return]

    def arrivals(self, flow: FlowMatch, count: int = 1) -> Seen:
        """Put frames of a flow on the wire; how they arrived."""
        __tracebackhide__ = True
        seen = self.send(flow, count)
        if seen is None:
            self._lack("arrival", "nobody sees how frames arrive")
        assert seen is not None  # _lack() ends the test
        return seen

    def eventually(self, holds: Callable[[], bool]) -> bool:
        """Whether it holds, now or within the NIC's patience."""
        deadline = time.monotonic() + self.nic.patience
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    # Hooks

    def probe(self) -> Capabilities:
        """Ask what the device can do."""
        __tracebackhide__ = True
        told = self.call(PROBE, "capabilities-are-sane", device=self.nic.device)
        self.expect(told, "answered None, not Capabilities", promise="capabilities-are-sane", hook=PROBE)
        return told  # type: ignore[no-any-return]

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules; the answer, as it should be in its form."""
        __tracebackhide__ = True
        self._sent.append(rules)
        return self._batch(INSTALL, rules)

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules; the answer, as it should be in its form."""
        __tracebackhide__ = True
        return self._batch(REMOVE, rules)

    def installed(self, rules: RuleBatch) -> RuleBatch:
        """Install rules, all of which must be taken; the rules."""
        __tracebackhide__ = True
        answer = self.install(rules)
        taken = answer.status == Outcome.INSTALLED
        if not taken.all():
            row = int(np.argmin(taken))
            wrong = f"{list(rules)[row].match} is {told(answer)[row].name}{_words(answer, row)}"
            self.broken(wrong, promise="rules-are-accepted", hook=INSTALL)
        return rules

    def removed(self, rules: RuleBatch) -> Outcomes:
        """Remove rules, all of which must be there; the answer."""
        __tracebackhide__ = True
        answer = self.remove(rules)
        wrong = f"of {len(rules)} rules that stand it says {names(told(answer))}"
        self.expect((answer.status == Outcome.REMOVED).all(), wrong, promise="removed-rules-are-gone", hook=REMOVE)
        return answer

    def dump(self) -> NDArray[np.void]:
        """Read all rules back, rows of INSTALLED_ROW, ours alone."""
        __tracebackhide__ = True
        rows: NDArray[np.void] | None = self.call(DUMP, "dumps-are-installed-rows", device=self.nic.device)
        if rows is None or rows.ndim != 1:
            about = "None, for a NIC that is there" if rows is None else f"an array of shape {rows.shape}"
            self.broken(f"answered {about}", promise="dumps-are-installed-rows", hook=DUMP)
        later = rows["last_used"] > np.uint64(time.monotonic_ns())
        self.expect(
            not later.any(),
            f"last_used is {int(rows['last_used'].max(initial=0))}, later than now by CLOCK_MONOTONIC",
            promise="dumps-are-installed-rows",
            hook=DUMP,
        )
        return rows[split_cookies(rows["rule"]["cookie"])[0]]

    def standing(self) -> dict[int, np.void]:
        """Read our rules back, by cookie."""
        __tracebackhide__ = True
        rows = self.dump()
        found = dict(zip(rows["rule"]["cookie"].tolist(), rows, strict=True))
        wrong = f"{len(rows)} rules with {len(found)} different cookies"
        self.expect(len(found) == len(rows), wrong, promise="dumps-give-back-the-rules", hook=DUMP)
        known = {cookie for batch in self._sent for cookie in batch.rows["cookie"].tolist()}
        for cookie in sorted(found.keys() - known)[:1]:
            match = FlowMatch.from_key(found[cookie]["rule"]["key"], int(found[cookie]["rule"]["family"]))
            wrong = f"there is a rule for {match} with the cookie {cookie:#x}, which nobody installed"
            self.broken(wrong, promise="dumps-give-back-the-rules", hook=DUMP)
        return found

    def find(self, rules: RuleBatch) -> list[np.void]:
        """Read rules back that must stand, a row of INSTALLED_ROW each."""
        __tracebackhide__ = True
        found = self.standing()
        for cookie in rules.rows["cookie"].tolist():
            wrong = f"the rule of cookie {cookie:#x} is missing"
            self.expect(cookie in found, wrong, promise="dumps-give-back-the-rules", hook=DUMP)
        return [found[cookie] for cookie in rules.rows["cookie"].tolist()]

    def counts(self, rules: RuleBatch) -> NDArray[np.int64]:
        """Read packets and bytes of rules that must stand, shape (rules, 2)."""
        __tracebackhide__ = True
        both = [(int(row["packets"]), int(row["bytes"])) for row in self.find(rules)]
        return np.array(both, dtype=np.int64).reshape(len(rules), 2)

    def _batch(self, hook: str, rules: RuleBatch) -> Outcomes:
        __tracebackhide__ = True
        before = rules.rows.copy()
        answer = self.call(hook, "every-rule-has-a-status", device=self.nic.device, rules=rules)
        for wrong in _faults(hook, answer, len(rules)):
            self.broken(wrong, promise="every-rule-has-a-status", hook=hook)
        changed = (rules.rows != before).any() if len(rules) else False
        self.expect(not changed, "the batch was written to", promise="every-rule-has-a-status", hook=hook)
        self.nic.heard += answer.messages.values()
        return answer  # type: ignore[no-any-return]

    # Life

    def restart(self) -> None:
        """Go on with the plugin object of a new process."""
        __tracebackhide__ = True
        try:
            found = self.needs("restart")()
        except (UnsupportedError, pytest.skip.Exception):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is its fault, named
            wrong = f"setup beside what an earlier run left raised {type(error).__name__}: {error}"
            self.broken(wrong, promise="rules-outlive-their-process", why=error)
        if found is not None:
            self.nic.plugin = found
        self.register(self.nic.plugin)

    def sweep(self) -> None:
        """Remove whatever the test installed, and look at nothing: the next test begins with an empty NIC."""
        for batch in self._sent:
            with suppress(Exception):
                self.plugins.call(self.name, REMOVE, device=self.nic.device, rules=batch)


def told(answer: Outcomes) -> list[Outcome]:
    """Give an answer's statuses as words."""
    return [Outcome(status) for status in answer.status.tolist()]


def by_protocol(protocols: Iterable[str]) -> list[int]:
    """Give numbers of protocols that rules of others might be for."""
    known = {PROTOCOL_NUMBERS[name] for name in protocols}
    return [number for number in (1, 6, 17, 132) if number not in known]


def _words(answer: Outcomes, row: int) -> str:
    words = answer.messages.get(row) or next(iter(answer.messages.values()), "")
    return f" ({words})" if words else ""


def _faults(hook: str, answer: Outcomes, length: int) -> Iterator[str]:
    """What is wrong with an answer for a batch that the core would take."""
    status = answer.status
    if not isinstance(status, np.ndarray) or status.dtype != np.uint8:
        kind = status.dtype if isinstance(status, np.ndarray) else type(status).__name__
        yield f"Outcomes.status is {kind}, not an array of uint8"
        return
    strange = set(told(answer)) - _ANSWERS[hook]
    if strange:
        yield f"says {names(strange)}, which is no answer of this hook"
    for row, words in answer.messages.items():
        if not isinstance(row, int | np.integer) or not 0 <= row < length or not isinstance(words, str):
            yield f"Outcomes.messages has {row!r}: {words!r}; a batch of {length} has words for rows 0 to {length - 1}"
    if answer.counted is not None and answer.counted.dtype != np.uint64:
        yield f"Outcomes.counted is {answer.counted.dtype}; should be uint64"
