# SPDX-License-Identifier: Apache-2.0
"""The metrics of flow_actions: packets by action, what became of the others, and how many entries there are."""

from __future__ import annotations

from collections.abc import Iterator

from nfcore.api.metrics import MetricFamily, counter, function_packets, gauge

from .function import NAME, FlowActions
from .layouts import Action, Other, Path
from .table import Owner

_OTHERS = {
    Other.NO_MATCH: "no_match",
    Other.NOT_IP: "not_ip",
    Other.MARK_UNKNOWN: "mark_unknown",
    Other.MARK_MISMATCH: "mark_mismatch",
    Other.POLICED: "policed",
    Other.INTERFACE_MISSING: "interface_missing",
    Other.CPU_MISSING: "cpu_missing",
    Other.NOT_CHANGED: "not_changed",
}
_PATHS = {Path.LOOK_UP: "slow", Path.MARK: "fast"}


def families(function: FlowActions) -> Iterator[MetricFamily]:
    """Give all metric families."""
    totals = function.data_plane.totals()
    text = "Packets that reached XDP, by the action of their entry and how it was found: by mark (fast) or look-up."
    packets = counter("nfcore_flow_actions_packets_total", text, "packets", "action", "path")
    actions = totals.actions.reshape(len(Path), len(Action))
    for path, word in _PATHS.items():
        for action in Action:
            if action is not Action.NOTHING:
                packets.add(int(actions[path, action]), action=action.name.lower(), path=word)
    yield packets
    done = {action.name.lower(): int(actions[:, action].sum()) for action in Action if action is not Action.NOTHING}
    passed_on = sum(int(totals.others[other]) for other in (Other.NO_MATCH, Other.NOT_IP))
    yield function_packets(NAME, {**done, "passed_on": passed_on})
    text = "Packets without an entry, with a useless mark, or whose action was not carried out, by what happened."
    others = counter("nfcore_flow_actions_other_packets_total", text, "packets", "kind")
    for other, word in _OTHERS.items():
        others.add(int(totals.others[other]), kind=word)
    yield others
    table = function.table
    entries = gauge("nfcore_flow_actions_entries", "Entries, by who made them.", "entries", "owner")
    for owner in Owner:
        entries.add(len(table.slots(owner)), owner=owner.name.lower())
    yield entries
    room = gauge("nfcore_flow_actions_entries_capacity", "Entries that fit: [flow_actions] entries.", "entries")
    room.add(table.capacity)
    yield room
    shapes = gauge("nfcore_flow_actions_shapes", "Shapes of masked entries; 64 fit per family.", "shapes", "family")
    for family, count in table.shapes().items():
        shapes.add(count, family=str(family))
    yield shapes
    text = "Interfaces of redirects that are not there."
    missing = gauge("nfcore_flow_actions_missing_interfaces", text, "interfaces")
    missing.add(len(function.targets_in_use.missing()))
    yield missing
