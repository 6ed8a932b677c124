# SPDX-License-Identifier: Apache-2.0
"""Reads the flow table for `nfcore flows` and `nfcore explain`.

Results are JSON values. Times are seconds, rates packets a second. `packets` and `bytes` are those of the present rule,
`hardware_packets` and `hardware_bytes` those of all rules of the flow since it is tracked. Long lists are
:class:`~nfcore.api.json_rows.JsonRows`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.flows import ANY_CPU, PROTOCOL_NAMES, VLAN_ID, FlowBatch, FlowMatch, pack_address, tags_of
from ..api.json_rows import JsonRows
from ..api.network_function import NetworkFunction
from ..api.reasons import Reason, reason_sentence, reason_word
from ..engine.event_log import NO_BACKEND
from ..engine.flow_state import LISTED_STATES, SHOWN_STATES, SORT_KEYS, FlowState, Order
from ..engine.state import EngineState
from ..errors import ConfigError, Problem

MOST_FLOWS = 10_000
"""Flows in one response."""
_COLUMNS = (
    "state", "reason", "since", "seen", "packets", "bytes", "past_packets", "past_bytes", "mark", "backend",
    "order",
)  # fmt: skip
"""Columns of the flow table that the results show."""
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
    ended: bool = False,
) -> dict[str, Any]:
    """List the first `limit` flows by `sort`, with `reverse` the last.

    states: only these; without any, all but flows whose connections have ended, and with `ended` these, too.
    match: words that must all fit. Each is an address, a prefix, ``address:port``, or a part of what a function
    says of its target (VIP, real), of the name of an interface, a backend or a reason, or the name of a function.

    ConfigError: a parameter is wrong.
    """
    if sort not in SORT_KEYS:
        raise ConfigError("flows", [Problem("sort", f"is {sort!r}; should be one of {', '.join(SORT_KEYS)}")])
    slots = state.table.slots_in(*_wanted(states, ended=ended))
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
    counts = {flow_state.word: state.table.count(flow_state) for flow_state in LISTED_STATES}
    rows = JsonRows(_Copy(state, first).rows)
    return {"flows": rows, "matching": len(slots), "states": counts, "offload": state.switched_on}


def _first(column: NDArray[Any], count: int, *, smallest: bool) -> NDArray[np.int64]:
    """Positions of the largest (or smallest) values, in order. Only these are sorted: there may be a million values."""
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
    """Which flows fit all words of a text. backends: index in the device's list, or NO_BACKEND."""
    fits = np.ones(len(flows), dtype=bool)
    for word in text.split():
        fits &= _fits(state, flows, reasons, backends, word)
    return fits


def _fits(
    state: EngineState, flows: NDArray[np.void], reasons: NDArray[np.uint8], backends: NDArray[np.uint8], word: str
) -> NDArray[np.bool_]:
    """Which flows fit one word. Each name is compared once, not once per flow: there may be a million flows."""
    fits = _has_address(flows, word)
    for nf in state.context.nfs:
        targets = np.unique(flows["target"][flows["nf"] == nf.number])
        named = [target for target in targets.tolist() if any(word in name for name in nf.describe(target).values())]
        of_nf = flows["nf"] == nf.number
        fits |= of_nf & (np.isin(flows["target"], np.array(named, dtype=np.uint64)) | (word == nf.name))
    named_reasons = [reason for reason in np.unique(reasons).tolist() if reason and word in reason_word(reason)]
    fits |= np.isin(reasons, named_reasons)
    for ifindex, device in state.devices.items():
        here = flows["ifindex"] == ifindex
        fits |= here & (word in device.name)
        named_backends = [number for number, name in enumerate(device.backends.names) if word in name]
        fits |= here & np.isin(backends, named_backends)
    return fits


def _has_address(flows: NDArray[np.void], text: str) -> NDArray[np.bool_]:
    """Which flows have an address, an address of a prefix, or ``address:port`` as source or destination."""
    fits = np.zeros(len(flows), dtype=bool)
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
            here = ((flows["key"][end] & mask) == base).all(axis=1) & (flows["family"] == network.version)
            fits |= here & (flows["key"][end_port] == int(number)) if number else here
        break
    return fits


def _wanted(states: list[str] | None, *, ended: bool) -> list[FlowState]:
    """Give the states of these names; without a name those that are shown. ConfigError: there is no such state."""
    known = {state.word: state for state in LISTED_STATES}
    wrong = [state for state in states or () if state not in known]
    if wrong:
        raise ConfigError("flows", [Problem("state", f"is {wrong[0]!r}; should be one of {', '.join(known)}")])
    return [known[state] for state in states] if states else list(LISTED_STATES if ended else SHOWN_STATES)


def explain(state: EngineState, text: str) -> dict[str, Any]:
    """Give all that is known of one flow, written as by :class:`FlowMatch`. ConfigError: the text is no flow.

    That includes an order that covers the flow: it may be of a masked flow.
    """
    try:
        match = FlowMatch.parse(text)
    except ValueError as error:
        raise ConfigError("explain", [Problem("", str(error))]) from None
    functions = {nf.name: said for nf in state.context.nfs if (said := nf.explain(match)) is not None}
    slots = _slots_of(state, match, [said.ordered for said in functions.values()])
    known = _Copy(state, np.array(slots, dtype=np.int64)).rows()
    rows = [row | {"why": _why(state, slot)} for row, slot in zip(known, slots, strict=True)]
    return {
        "flow": str(match),
        "in_hardware": any(row["in_hardware"] for row in rows),
        "functions": {name: said.text for name, said in functions.items()},
        "found": rows,
        "why": "" if rows or functions else _why_unknown(state),
    }


def _slots_of(state: EngineState, match: FlowMatch, ordered: list[FlowBatch]) -> list[int]:
    """Slots of a 5-tuple, for all pairs of network function and device, and of the ordered flows that cover it."""
    pairs = [(nf.number, device.ifindex) for nf in state.context.nfs for device in state.context.devices]
    batch = FlowBatch.empty(len(pairs))
    batch.rows["key"], batch.rows["family"] = match.to_key(), match.family
    for row, (number, ifindex) in zip(batch.rows, pairs, strict=True):
        row["nf"], row["ifindex"] = number, ifindex
    slots = [state.table.find(each) for each in (*ordered, batch)]
    return list(dict.fromkeys(int(slot) for found in slots for slot in found if slot >= 0))


def rates_now(state: EngineState, slots: NDArray[np.int64]) -> NDArray[np.float64]:
    """The current rates of flows, in packets a second.

    0 for a rule whose counter stood still at the last poll. The engine's own rate for it falls more slowly, so that a
    flow does not lose its place by a short pause. The rate of a flow without a rule falls while no report comes.
    """
    table = state.table
    rates = table.rate[slots].astype(np.float64)
    installed = table.state[slots] == FlowState.INSTALLED
    for ifindex, device in state.devices.items():
        here = (
            installed
            & (table.flow["ifindex"][slots] == ifindex)
            & ~np.isin(table.backend[slots], device.without_counters)
        )
        held = slots[here]
        counted = device.counted_at[table.backend[held]]
        was_polled = table.since[held] + state.offload.counter_lag <= counted
        rates[here] = np.where(was_polled & (table.seen[held] < counted), 0.0, rates[here])
    without_rule = ~np.isin(table.state[slots], _HELD)
    rates[without_rule] = np.minimum(rates[without_rule], state.highest_rates(slots[without_rule]))
    return rates


class Targets:
    """What functions say of their targets, asked once each."""

    def __init__(self, nfs: Sequence[NetworkFunction]) -> None:
        self._nfs = nfs
        self._said: dict[tuple[int, int], dict[str, Any]] = {}

    def of(self, flow: np.void) -> dict[str, Any]:
        """Give the keys of a flow's row that tell of its target: ``nf``, ``target``, and each word of its own, too.

        They come first in the row, so that a function's words cannot replace what the core says.
        """
        number, target = int(flow["nf"]), int(flow["target"])
        if (number, target) not in self._said:
            nf = self._nfs[number - 1]
            words = {str(key): str(value) for key, value in nf.describe(target).items()}
            self._said[number, target] = {**words, "nf": nf.name, "target": words}
        return self._said[number, target]


class _Copy:
    """A copy of tracked flows, all at the same time: the table changes while a long response is written."""

    def __init__(self, state: EngineState, slots: NDArray[np.int64]) -> None:
        self._now, self._devices = state.clock(), state.devices
        self._flow = state.table.flow[slots]
        self._columns = {name: getattr(state.table, name)[slots].tolist() for name in _COLUMNS}
        self._columns["rate"] = rates_now(state, slots).tolist()
        self._targets = Targets(state.context.nfs)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give each flow as JSON values."""
        for flow, *values in zip(self._flow, *self._columns.values(), strict=True):
            yield self._row(flow, dict(zip(self._columns, values, strict=True)))

    def _row(self, flow: np.void, values: dict[str, Any]) -> dict[str, Any]:
        """Give one flow as JSON values. values: of the columns."""
        state, device = FlowState(values["state"]), self._devices.get(int(flow["ifindex"]))
        held, backend = state in _HELD, values["backend"]
        backends = device.backends.names if device else ()
        cpu, match = int(flow["cpu"]), FlowMatch.from_key(flow["key"], int(flow["family"]))
        return {
            **self._targets.of(flow),
            "flow": str(match),
            "src": str(match.src),
            "sport": match.sport,
            "dst": str(match.dst),
            "dport": match.dport,
            "proto": PROTOCOL_NAMES.get(match.proto, match.proto),
            "vlans": [tag & VLAN_ID for tag in tags_of(flow) if tag],
            "state": state.word,
            "in_hardware": held,
            "reason": reason_word(values["reason"]) if values["reason"] else None,
            "since_seconds": round(self._now - values["since"], 3),
            "seen_seconds": round(self._now - values["seen"], 3),
            "rate": round(values["rate"], 1),
            "packets": values["packets"] if held else 0,
            "bytes": values["bytes"] if held else 0,
            "hardware_packets": values["past_packets"] + values["packets"],
            "hardware_bytes": values["past_bytes"] + values["bytes"],
            "packets_when_reported": int(flow["packets"]),
            "mark": values["mark"] or None,
            "backend": backends[backend] if held and backend < len(backends) else None,
            "interface": device.name if device else None,
            "cpu": None if cpu == ANY_CPU else cpu,
            "ordered": values["order"] != Order.NONE,
        }


def _why(state: EngineState, slot: int) -> str:
    """Explain the state of a tracked flow."""
    table = state.table
    now, reason = FlowState(int(table.state[slot])), int(table.reason[slot])
    if now is FlowState.INSTALLED:
        works = "the NIC drops its packets" if table.drops[slot] else "the NIC marks its packets"
        return works if not reason else f"its rule is to be removed: {reason_sentence(reason)}"
    if now is FlowState.PENDING:
        return "its rule is on its way to the NIC"
    if now is FlowState.DRAINING:
        return f"its rule is being removed: {reason_sentence(reason)}"
    if now is FlowState.WAITING:
        return f"it waits for a rule: {reason_sentence(reason)}" if reason else "it waits for a rule"
    return f"it has no rule: {reason_sentence(reason)}"


def _why_unknown(state: EngineState) -> str:
    """Explain why a flow is not tracked."""
    if not state.switched_on:
        return reason_sentence(Reason.SWITCHED_OFF)
    return (
        "the datapath has not reported it, or its report was lost, or it was forgotten since; a flow is "
        f"reported after [offload] min_packets = {state.offload.min_packets} packets on one CPU, but not for a SYN, "
        "FIN or RST"
    )
