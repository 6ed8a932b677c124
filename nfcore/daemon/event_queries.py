# SPDX-License-Identifier: Apache-2.0
"""Reads the event log for `nfcore events`: the methods behind the socket's `events`.

A response has a limited number of events, as JSON values, and three numbers: `next`, from which on to ask next time;
`newest`, which the next event will get; and `lost`, how many events are missing before those of the response.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.flows import PROTOCOL_NAMES, FlowMatch
from ..api.reasons import Reason, reason_sentence, reason_word
from ..engine.event_kind import EventKind
from ..engine.event_log import COLUMNS, NO_BACKEND, Note, Records
from ..engine.state import EngineState
from ..errors import ConfigError, Problem
from .flow_queries import Targets, matching

MOST_EVENTS = 500
"""Events in one response: some milliseconds of work."""
LONGEST_WAIT = 30.0
"""Seconds that a request may wait for an event, at most."""
PACE = 0.05
"""Seconds between two checks for a waiting follower, so that followers cannot keep the event loop busy."""
_NUMBERS: dict[str, type[int] | type[float]] = {"since": int, "last": int, "limit": int, "after": float, "wait": float}
_LISTS = ("kinds", "reasons", "interfaces")
KINDS = {kind.word: kind for kind in EventKind}


async def follow(state: EngineState, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give the result of :func:`look`; with `wait`, once there is an event or that many seconds have passed.

    ConfigError: a parameter is wrong, or there is no such interface.
    """
    given = _checked(parameters)
    _require(state, given.get("interfaces", ()))
    wait = min(given.pop("wait", 0.0), LONGEST_WAIT)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    if wait:
        await asyncio.sleep(PACE)
    found = look(state, **given)
    while not found["events"] and not found["lost"] and loop.time() < deadline:
        # Do not search the same events again.
        given = {key: value for key, value in given.items() if key not in ("last", "after")} | {"since": found["next"]}
        while state.events.next == found["next"] and loop.time() < deadline:
            await asyncio.sleep(PACE)
        await asyncio.sleep(PACE)
        found = look(state, **given)
    return found


@dataclass(frozen=True)
class _Filter:
    """Which events are wanted. Empty values let all pass."""

    kinds: list[str]
    reasons: list[str]
    interfaces: list[str]
    match: str

    def records(self, state: EngineState, records: Records) -> NDArray[np.bool_]:
        """Which events of flows are wanted."""
        wanted = np.ones(len(records), dtype=bool)
        if self.kinds:
            wanted &= np.isin(records["kind"], [KINDS[kind] for kind in self.kinds if kind in KINDS])
        if self.reasons:
            present = np.unique(records["reason"]).tolist()
            wanted &= np.isin(records["reason"], [number for number in present if reason_word(number) in self.reasons])
        if self.interfaces:
            named = [ifindex for ifindex, device in state.devices.items() if device.name in self.interfaces]
            wanted &= np.isin(records.flows["ifindex"], named)
        if self.match and wanted.any():
            rest = records.only(wanted)
            wanted[wanted] = matching(state, rest.flows, rest["reason"], rest["backend"], self.match)
        return wanted

    def note(self, note: Note) -> bool:
        """Whether an event of the daemon or of a device is wanted."""
        if self.reasons or (self.kinds and note.kind.word not in self.kinds):
            return False
        if self.interfaces and note.interface not in self.interfaces:
            return False
        return all(word in note.message or word in (note.interface or "") for word in self.match.split())


def look(
    state: EngineState,
    *,
    since: int | None = None,
    last: int | None = None,
    after: float | None = None,
    kinds: Iterable[str] = (),
    reasons: Iterable[str] = (),
    interfaces: Iterable[str] = (),
    match: str = "",
    limit: int = MOST_EVENTS,
) -> dict[str, Any]:
    """Give events in order: from the number `since` on, from the time `after` on; of those that fit, the `last` ones.

    kinds, reasons, interfaces: an event must have one of each; none: all fit. match: as for `nfcore flows`.
    """
    log = state.events
    first = 0 if since is None or since > log.next else since
    records, notes = log.since(first)
    lost = 0 if since is None else log.next - first - len(records) - len(notes)
    if after is not None:
        records, notes = records.only(records["time"] >= after), [note for note in notes if note.time >= after]
    wanted = _Filter(list(kinds), list(reasons), list(interfaces), match)
    records, notes = records.only(wanted.records(state, records)), [note for note in notes if wanted.note(note)]
    numbers = np.sort(np.concatenate([records["seq"], np.array([note.seq for note in notes], dtype=np.uint64)]))
    if last is not None:
        numbers = numbers[max(0, len(numbers) - last) :]
    limit = max(1, min(limit, MOST_EVENTS))
    numbers = numbers[:limit]
    chosen = set(numbers.tolist())
    events = _flow_events(state, records.only(np.isin(records["seq"], numbers)))
    events += [_note_event(note) for note in notes if note.seq in chosen]
    events.sort(key=lambda event: event["seq"])
    # At the limit there may be more: the next response begins after the last event of this one.
    following = events[-1]["seq"] + 1 if len(numbers) == limit else log.next
    return {"events": events, "next": following, "newest": log.next, "lost": lost}


def _checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(parameters)
    for name, value in given.items():
        problem = _problem(name, value)
        if problem:
            raise ConfigError("events", [Problem(name, problem)])
    return given


def _problem(name: str, value: Any) -> str:
    """What is wrong with a parameter; empty if nothing is."""
    if name in _NUMBERS:
        good = isinstance(value, (int, _NUMBERS[name])) and not isinstance(value, bool) and 0 <= value < 2**62
        return "" if good else f"is {value!r}; should be a number, not below 0"
    if name == "match":
        return "" if isinstance(value, str) else f"is {value!r}; should be a text"
    if name not in _LISTS:
        return f"is no parameter; there are: {', '.join(sorted([*_NUMBERS, *_LISTS, 'match']))}"
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return f"is {value!r}; should be a list of words"
    known = {"kinds": list(KINDS), "reasons": [reason.word for reason in Reason]}.get(name)
    if known is None:
        return ""
    wrong = [word for word in value if word not in known and not (name == "reasons" and word.startswith("plugin_"))]
    return f"is {wrong[0]!r}; should be one of {', '.join(known)}" if wrong else ""


def _require(state: EngineState, interfaces: Iterable[str]) -> None:
    """ConfigError when one of the interfaces is not the daemon's."""
    known = sorted(device.name for device in state.devices.values())
    unknown = [name for name in interfaces if name not in known]
    if unknown:
        message = f"is {unknown[0]!r}; the daemon's interfaces are: {', '.join(known)}"
        raise ConfigError("events", [Problem("interfaces", message)])


def _note_event(note: Note) -> dict[str, Any]:
    about = {"interface": note.interface} if note.interface else {}
    return {"seq": note.seq, "time": note.time, "kind": note.kind.word, **about, "message": note.message}


def _flow_events(state: EngineState, records: Records) -> list[dict[str, Any]]:
    columns = zip(*(records[name].tolist() for name in COLUMNS), strict=True)
    targets = Targets(state.context.nfs)
    return [
        _flow_event(state, flow, dict(zip(COLUMNS, values, strict=True)), targets)
        for flow, values in zip(records.flows, columns, strict=True)
    ]


def _flow_event(state: EngineState, flow: np.void, row: dict[str, Any], targets: Targets) -> dict[str, Any]:
    """Give an event of a flow as JSON values."""
    device = state.devices.get(int(flow["ifindex"]))
    backends = device.backends.names if device else ()
    backend, reason, mark = row["backend"], row["reason"], row["mark"]
    event: dict[str, Any] = {
        **targets.of(flow),
        "seq": row["seq"],
        "time": row["time"],
        "kind": EventKind(row["kind"]).word,
        "flow": _text(flow["key"], int(flow["family"])),
    }
    if device:
        event["interface"] = device.name
    if mark:
        event["mark"] = mark
    if backend != NO_BACKEND and backend < len(backends):
        event["backend"] = backends[backend]
    if reason:
        event |= {"reason": reason_word(reason), "why": reason_sentence(reason)}
    if row["packets"]:
        event |= {"packets": row["packets"], "bytes": row["bytes"]}
    message = state.events.text_of(row["text"])
    if message:
        event["message"] = message
    return event


def _text(key: np.void, family: int) -> str:
    """Write a flow as FlowMatch does; for exact IPv4 ones in a fraction of the time."""
    if family != 4 or key["wild"].any():
        return str(FlowMatch.from_key(key, family))
    proto = int(key["proto"])
    ends = [socket.inet_ntop(socket.AF_INET, key[end].tobytes()[:4]) for end in ("src", "dst")]
    source, target = f"{ends[0]}:{int(key['sport'])}", f"{ends[1]}:{int(key['dport'])}"
    return f"{source} > {target}/{PROTOCOL_NAMES.get(proto, str(proto))}"
