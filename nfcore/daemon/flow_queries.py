# SPDX-License-Identifier: Apache-2.0
"""Which flows are known, and why a flow is in hardware or is not: for `nfcore flows` and `nfcore explain`.

Objects are JSON values. Times are seconds, rates packets a second; `packets` and `bytes` are those of the rule that is
there, `hardware_packets` and `hardware_bytes` of all rules that the flow had since it is tracked. Long lists are
:class:`~nfcore.api.json_rows.JsonRows`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.flows import ANY_CPU, FlowBatch, FlowMatch, pack_address
from ..api.json_rows import JsonRows
from ..api.reasons import Reason, reason_sentence, reason_word
from ..engine.event_log import NO_BACKEND
from ..engine.flow_state import LISTED_STATES, SORT_KEYS, FlowState
from ..engine.state import EngineState
from ..errors import ConfigError, Problem

MOST_FLOWS = 10_000
"""In one answer."""
_TOLD = (
    "state", "reason", "since", "seen", "packets", "bytes", "past_packets", "past_bytes", "mark", "backend",
)  # fmt: skip
"""Columns of the flow table that are told."""
_HELD = (FlowState.INSTALLED, FlowState.DRAINING)
"""States in which a backend holds the rule."""


def list_flows(
    state: EngineState,
    *,
    states: list[str] | None = None,
    match: str = "",
    sort: str = "rate",
    reverse: bool = False,
    limit: int = 50,
) -> dict[str, Any]:
    """List flows, the first by `sort`, or with `reverse` the last.

    `match`: an address, a prefix, ``address:port``, or a part of the name of a VIP, a real, an interface, a backend or
    a reason; of several words each has to apply.

    ConfigError names what is wrong with a parameter.
    """
    if sort not in SORT_KEYS:
        raise ConfigError("flows", [Problem("sort", f"is {sort!r}; should be one of {', '.join(SORT_KEYS)}")])
    slots = state.table.slots_in(*_wanted(states))
    if match:
        table = state.table
        backends = np.where(np.isin(table.state[slots], _HELD), table.backend[slots], NO_BACKEND).astype(np.uint8)
        slots = slots[matching(state, table.batch(slots).rows, table.reason[slots], backends, match)]
    column: NDArray[Any] = (
        rates_now(state, slots)
        if sort == "rate"
        else sum(getattr(state.table, name)[slots] for name in SORT_KEYS[sort])
    )
    first = slots[_first(column, max(0, min(limit, MOST_FLOWS)), smallest=(sort == "age") != reverse)]
    counts = {each.word: state.table.count(each) for each in LISTED_STATES}
    found = JsonRows(_Copy(state, first).rows)
    return {"flows": found, "matching": len(slots), "states": counts, "offload": state.switched_on}


def _first(column: NDArray[Any], count: int, *, smallest: bool) -> NDArray[np.int64]:
    """Places of the largest (or smallest) values, in order. Only those are sorted, not the million beside them."""
    places = np.arange(len(column))
    if 0 < count < len(column):
        last = count - 1 if smallest else len(column) - count
        bound = np.partition(column, last)[last]
        places = places[column <= bound if smallest else column >= bound]
    order = np.argsort(column[places], kind="stable")
    return places[order if smallest else order[::-1]][:count]


def matching(
    state: EngineState, flows: NDArray[np.void], reasons: NDArray[np.uint8], backends: NDArray[np.uint8], text: str
) -> NDArray[np.bool_]:
    """Which flows a text is about: all of its words. `backends`: index in the device's list, or NO_BACKEND."""
    about = np.ones(len(flows), dtype=bool)
    for word in text.split():
        about &= _about(state, flows, reasons, backends, word)
    return about


def _about(
    state: EngineState, flows: NDArray[np.void], reasons: NDArray[np.uint8], backends: NDArray[np.uint8], text: str
) -> NDArray[np.bool_]:
    """Names are compared once each, not once a flow: there may be a million."""
    about = _with_end(flows, text)
    for nf in state.context.nfs:
        targets = np.unique(flows["target"][flows["nf"] == nf.number])
        named = [target for target in targets.tolist() if any(text in name for name in nf.describe(target).values())]
        about |= (flows["nf"] == nf.number) & np.isin(flows["target"], np.array(named, dtype=np.uint64))
    named_reasons = [reason for reason in np.unique(reasons).tolist() if reason and text in reason_word(reason)]
    about |= np.isin(reasons, named_reasons)
    for ifindex, device in state.devices.items():
        here = flows["ifindex"] == ifindex
        about |= here & (text in device.name)
        held = [number for number, name in enumerate(device.backends.names) if text in name]
        about |= here & np.isin(backends, held)
    return about


def _with_end(flows: NDArray[np.void], text: str) -> NDArray[np.bool_]:
    """Which flows have an end at an address, in a prefix, or at ``address:port``."""
    about = np.zeros(len(flows), dtype=bool)
    address, _, port = text.rpartition(":")
    for wanted, number in ((text, ""), (address, port)):
        try:
            network = ipaddress.ip_network(wanted.strip("[]"), strict=False)
        except ValueError:
            continue
        if number and not (number.isdecimal() and int(number) <= 0xFFFF):
            continue
        mask, base = pack_address(network.netmask), pack_address(network.network_address)
        for end, end_port in (("src", "sport"), ("dst", "dport")):
            there = ((flows["key"][end] & mask) == base).all(axis=1) & (flows["family"] == network.version)
            about |= there & (flows["key"][end_port] == int(number)) if number else there
        break
    return about


def _wanted(states: list[str] | None) -> list[FlowState]:
    known = {state.word: state for state in LISTED_STATES}
    wrong = [state for state in states or () if state not in known]
    if wrong:
        raise ConfigError("flows", [Problem("state", f"is {wrong[0]!r}; should be one of {', '.join(known)}")])
    return [known[state] for state in states] if states else list(LISTED_STATES)


def explain(state: EngineState, text: str) -> dict[str, Any]:
    """Say all that is known of one flow, written as by :class:`FlowMatch`. ConfigError when it is no flow."""
    try:
        match = FlowMatch.parse(text)
    except ValueError as error:
        raise ConfigError("explain", [Problem("", str(error))]) from None
    slots = _slots_of(state, match)
    told = _Copy(state, np.array(slots, dtype=np.int64)).rows()
    rows = [row | {"why": _why(state, slot)} for row, slot in zip(told, slots, strict=True)]
    words = "" if rows else _unknown(state)
    return {"flow": str(match), "in_hardware": any(row["in_hardware"] for row in rows), "found": rows, "why": words}


def _slots_of(state: EngineState, match: FlowMatch) -> list[int]:
    """Places of a 5-tuple, of every device and network function that knows it."""
    pairs = [(nf.number, device.ifindex) for nf in state.context.nfs for device in state.context.devices]
    batch = FlowBatch.empty(len(pairs))
    batch.rows["key"], batch.rows["family"] = match.to_key(), match.family
    for row, (number, ifindex) in zip(batch.rows, pairs, strict=True):
        row["nf"], row["ifindex"] = number, ifindex
    slots = state.table.find(batch)
    return [int(slot) for slot in slots if slot >= 0]


def rates_now(state: EngineState, slots: NDArray[np.int64]) -> NDArray[np.float64]:
    """Packets a second of flows, as far as it is known now.

    A rule whose counter stood still at the last reading has none: what the engine keeps beside it dies away slower,
    so that a short pause does not cost a flow its place. A flow without a rule that is not reported again is slower
    than it was.
    """
    table = state.table
    rates = table.rate[slots].astype(np.float64)
    installed = table.state[slots] == FlowState.INSTALLED
    for ifindex, device in state.devices.items():
        mine = installed & (table.flow["ifindex"][slots] == ifindex) & ~np.isin(table.backend[slots], device.blind)
        held = slots[mine]
        counted = device.counted[table.backend[held]]
        read = table.since[held] + state.offload.counter_lag <= counted
        rates[mine] = np.where(read & (table.seen[held] < counted), 0.0, rates[mine])
    unheld = ~np.isin(table.state[slots], _HELD)
    rates[unheld] = np.minimum(rates[unheld], state.heat(slots[unheld]))
    return rates


class _Copy:
    """Tracked flows as they are now, all of one instant: while they are told, the table goes on."""

    def __init__(self, state: EngineState, slots: NDArray[np.int64]) -> None:
        self._now, self._devices = state.clock(), state.devices
        self._flow = state.table.flow[slots]
        self._columns = {name: getattr(state.table, name)[slots].tolist() for name in _TOLD}
        self._columns["rate"] = rates_now(state, slots).tolist()
        self._targets: dict[tuple[int, int], dict[str, str]] = {}
        for nf in state.context.nfs:
            for target in np.unique(self._flow["target"][self._flow["nf"] == nf.number]).tolist():
                self._targets[nf.number, target] = {"nf": nf.name, **nf.describe(target)}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give all that is known of each."""
        for flow, *values in zip(self._flow, *self._columns.values(), strict=True):
            yield self._row(flow, dict(zip(self._columns, values, strict=True)))

    def _row(self, flow: np.void, of: dict[str, Any]) -> dict[str, Any]:
        state, device = FlowState(of["state"]), self._devices.get(int(flow["ifindex"]))
        installed, number = state in _HELD, of["backend"]
        backends = device.backends.names if device else ()
        cpu = int(flow["cpu"])
        return {
            "flow": str(FlowMatch.from_key(flow["key"], int(flow["family"]))),
            "state": state.word,
            "in_hardware": installed,
            "reason": reason_word(of["reason"]) if of["reason"] else None,
            "since_seconds": round(self._now - of["since"], 3),
            "seen_seconds": round(self._now - of["seen"], 3),
            "rate": round(of["rate"], 1),
            "packets": of["packets"] if installed else 0,
            "bytes": of["bytes"] if installed else 0,
            "hardware_packets": of["past_packets"] + of["packets"],
            "hardware_bytes": of["past_bytes"] + of["bytes"],
            "packets_when_reported": int(flow["packets"]),
            "mark": of["mark"] or None,
            "backend": backends[number] if installed and number < len(backends) else None,
            "interface": device.name if device else None,
            "cpu": None if cpu == ANY_CPU else cpu,
            **self._targets[int(flow["nf"]), int(flow["target"])],
        }


def _why(state: EngineState, slot: int) -> str:
    table = state.table
    now, reason = FlowState(int(table.state[slot])), int(table.reason[slot])
    if now is FlowState.INSTALLED:
        return "the NIC marks its packets" if not reason else f"its rule is about to go: {reason_sentence(reason)}"
    if now is FlowState.PENDING:
        return "its rule is on its way to the NIC"
    if now is FlowState.DRAINING:
        return f"its rule is being removed: {reason_sentence(reason)}"
    if now is FlowState.WAITING:
        return f"it waits for a rule: {reason_sentence(reason)}" if reason else "it waits for a rule"
    return f"it has no rule: {reason_sentence(reason)}"


def _unknown(state: EngineState) -> str:
    if not state.switched_on:
        return reason_sentence(Reason.SWITCHED_OFF)
    return (
        f"the datapath has not reported it: a flow that it serves is reported after [offload] min_packets = "
        f"{state.offload.min_packets} packets on one CPU, none of them SYN, FIN or RST; "
        "or its report was lost, or it was forgotten since"
    )
