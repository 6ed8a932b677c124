# SPDX-License-Identifier: Apache-2.0
"""What followers are told of the event log, a limited number of events an answer: for `nfcore events`.

Objects are JSON values. An answer names the number to ask from next, the number that the next event will have, and how
many events were lost before it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.flows import PROTOCOL_NAMES, FlowMatch
from ..api.reasons import Reason, reason_sentence, reason_word
from ..engine.event_kind import EventKind
from ..engine.event_log import COLUMNS, NO_BACKEND, Note, Records
from ..engine.state import EngineState
from ..errors import ConfigError, Problem
from .flow_queries import matching

MOST_EVENTS = 500
"""In one answer: some milliseconds of work."""
LONGEST_WAIT = 30.0
PACE = 0.05
"""Seconds between two looks for a follower that waits: followers cannot keep the event loop busy."""
_NUMBERS: dict[str, type[int] | type[float]] = {"since": int, "last": int, "limit": int, "after": float, "wait": float}
_LISTS = ("kinds", "reasons", "interfaces")
KINDS = {kind.word: kind for kind in EventKind}


async def follow(state: EngineState, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Answer like :func:`look`; with `wait`, not before there is an event, or that many seconds have passed.

    ConfigError names a parameter that is wrong, and of an interface which there are.
    """
    given = _checked(parameters)
    _require(state, given.get("interfaces", ()))
    wait = min(given.pop("wait", 0.0), LONGEST_WAIT)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    if wait:
        await asyncio.sleep(PACE)
    answer = look(state, **given)
    while not answer["events"] and not answer["lost"] and loop.time() < deadline:
        # What has been looked at need not be looked at again.
        given = {key: value for key, value in given.items() if key not in ("last", "after")} | {"since": answer["next"]}
        while state.events.next == answer["next"] and loop.time() < deadline:
            await asyncio.sleep(PACE)
        await asyncio.sleep(PACE)
        answer = look(state, **given)
    return answer


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
    """Give events in order: from number `since` on, not before the time `after`, of those that fit the `last` ones.

    kinds, reasons, interfaces: words of which one must be the event's; none: all. `match` as for `nfcore flows`.
    """
    log = state.events
    first = 0 if since is None or since > log.next else since
    records, notes = log.since(first)
    lost = 0 if since is None else log.next - first - len(records) - len(notes)
    if after is not None:
        records, notes = records.only(records["time"] >= after), [note for note in notes if note.time >= after]
    records = records.only(_wanted(state, records, list(kinds), list(reasons), list(interfaces), match))
    notes = [note for note in notes if _is_wanted(note, list(kinds), list(reasons), list(interfaces), match)]
    numbers = np.sort(np.concatenate([records["seq"], np.array([note.seq for note in notes], dtype=np.uint64)]))
    if last is not None:
        numbers = numbers[max(0, len(numbers) - last) :]
    numbers = numbers[: max(1, min(limit, MOST_EVENTS))]
    # Cut off at the limit: the next answer begins behind the last that is told here.
    full = len(numbers) == max(1, min(limit, MOST_EVENTS))
    names: dict[tuple[int, int], dict[str, str]] = {}
    records = records.only(np.isin(records["seq"], numbers))
    told = [_flow_event(state, flow, each, names) for flow, each in zip(records.flows, _each(records), strict=True)]
    chosen = set(numbers.tolist())
    told += [_note_event(note) for note in notes if note.seq in chosen]
    told.sort(key=lambda event: event["seq"])
    following = told[-1]["seq"] + 1 if full else log.next
    return {"events": told, "next": following, "newest": log.next, "lost": lost}


def _checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(parameters)
    for name, value in given.items():
        problem = _problem(name, value)
        if problem:
            raise ConfigError("events", [Problem(name, problem)])
    return given


def _problem(name: str, value: Any) -> str:
    """What is wrong with a parameter, empty when nothing is."""
    if name in _NUMBERS:
        fine = isinstance(value, (int, _NUMBERS[name])) and not isinstance(value, bool) and 0 <= value < 2**62
        return "" if fine else f"is {value!r}; should be a number, not below 0"
    if name == "match":
        return "" if isinstance(value, str) else f"is {value!r}; should be a text"
    if name not in _LISTS:
        return f"is no parameter; those are: {', '.join(sorted([*_NUMBERS, *_LISTS, 'match']))}"
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return f"is {value!r}; should be a list of words"
    known = {"kinds": list(KINDS), "reasons": [reason.word for reason in Reason]}.get(name)
    if known is None:
        return ""
    wrong = [word for word in value if word not in known and not (name == "reasons" and word.startswith("plugin_"))]
    return f"is {wrong[0]!r}; should be one of {', '.join(known)}" if wrong else ""


def _require(state: EngineState, interfaces: Iterable[str]) -> None:
    known = sorted(device.name for device in state.devices.values())
    unknown = [name for name in interfaces if name not in known]
    if unknown:
        words = f"is {unknown[0]!r}; the daemon's interfaces are: {', '.join(known)}"
        raise ConfigError("events", [Problem("interfaces", words)])


def _wanted(
    state: EngineState, records: Records, kinds: list[str], reasons: list[str], interfaces: list[str], match: str
) -> NDArray[np.bool_]:
    wanted = np.ones(len(records), dtype=bool)
    if kinds:
        wanted &= np.isin(records["kind"], [KINDS[kind] for kind in kinds if kind in KINDS])
    if reasons:
        there = np.unique(records["reason"]).tolist()
        wanted &= np.isin(records["reason"], [number for number in there if reason_word(number) in reasons])
    if interfaces:
        named = [ifindex for ifindex, device in state.devices.items() if device.name in interfaces]
        wanted &= np.isin(records.flows["ifindex"], named)
    if match and wanted.any():
        few = records.only(wanted)
        wanted[wanted] = matching(state, few.flows, few["reason"], few["backend"], match)
    return wanted


def _is_wanted(note: Note, kinds: list[str], reasons: list[str], interfaces: list[str], match: str) -> bool:
    if reasons or (kinds and note.kind.word not in kinds) or (interfaces and note.interface not in interfaces):
        return False
    return all(word in note.message or word in (note.interface or "") for word in match.split())


def _note_event(note: Note) -> dict[str, Any]:
    about = {"interface": note.interface} if note.interface else {}
    return {"seq": note.seq, "time": note.time, "kind": note.kind.word, **about, "message": note.message}


def _each(records: Records) -> Iterator[dict[str, Any]]:
    """Give what is noted of each event as Python's own values."""
    columns = [records[name].tolist() for name in COLUMNS]
    for values in zip(*columns, strict=True):
        yield dict(zip(COLUMNS, values, strict=True))


def _flow_event(
    state: EngineState, flow: np.void, row: dict[str, Any], names: dict[tuple[int, int], dict[str, str]]
) -> dict[str, Any]:
    """Tell an event of a flow. `names`: of (NF, target), asked for once each."""
    nf_number, target, device = int(flow["nf"]), int(flow["target"]), state.devices.get(int(flow["ifindex"]))
    if (nf_number, target) not in names:
        nf = state.context.nfs[nf_number - 1]
        names[nf_number, target] = {"nf": nf.name, **nf.describe(target)}
    backends = device.backends.names if device else ()
    backend, reason, mark = row["backend"], row["reason"], row["mark"]
    event: dict[str, Any] = {
        "seq": row["seq"],
        "time": row["time"],
        "kind": EventKind(row["kind"]).word,
        "flow": _text(flow["key"], int(flow["family"])),
        **names[nf_number, target],
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
    """As FlowMatch writes it, but for IPv4 at a fraction of the time."""
    if family != 4:
        return str(FlowMatch.from_key(key, family))
    proto = int(key["proto"])
    ends = [socket.inet_ntop(socket.AF_INET, key[end].tobytes()[:4]) for end in ("src", "dst")]
    source, target = f"{ends[0]}:{int(key['sport'])}", f"{ends[1]}:{int(key['dport'])}"
    return f"{source} > {target}/{PROTOCOL_NAMES.get(proto, str(proto))}"
