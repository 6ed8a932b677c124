# SPDX-License-Identifier: Apache-2.0
"""The TOML table `[flow_actions]`: its model and its checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nfcore.api.config import ConfigTable
from nfcore.errors import Problem

from .entries import EntryError, EntryTable, check_tables, convert_raw
from .table import TOML_PLACE, Table

MOST_ENTRIES, MOST_TARGETS = 1_000_000, 65_535


def _folder(value: object) -> str:
    if isinstance(value, str) and (not value or value.startswith("/")) and "\0" not in value:
        return value
    raise ValueError("should be the absolute path of a folder, such as '/run/nfcore/bpf/flows', or empty")


class FlowActionsTable(ConfigTable):
    """`[flow_actions]`."""

    entries: int = Field(default=131_072, ge=1, le=MOST_ENTRIES)
    """Entries that fit, those of the TOML and of applications together."""
    targets: int = Field(default=4_096, ge=1, le=MOST_TARGETS)
    """Different actions that fit; each entry with `police` needs one of its own."""
    pin_dir: Annotated[str, BeforeValidator(_folder)] = ""
    """Folder of a bpf file system for the counters; with it, entries of applications outlive the daemon."""
    marked_packets: Literal["trust", "look-up"] = "trust"
    """Whether a mark alone says what to do, or the flow of a marked packet is looked up, too."""
    missing_interface: Literal["drop", "pass"] = "drop"
    """What happens to packets that are to be redirected to an interface that is not there."""
    flows: list[EntryTable] = Field(default=[])


def check_table(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find mistakes that the model cannot find: in one entry, and between entries."""
    flows = raw.get("flows")
    if not isinstance(flows, list):
        return
    found = list(check_tables(flows, f"{path}.flows"))
    yield from found
    sizes = raw.get("entries", 131_072), raw.get("targets", 4_096)
    if found or not all(type(size) is int and size > 0 for size in sizes):
        return
    entries = convert_raw(flows, TOML_PLACE)
    if entries is None:
        return  # the model finds what is wrong
    try:
        Table(min(sizes[0], MOST_ENTRIES), min(sizes[1], MOST_TARGETS)).plan_toml(entries)
    except EntryError as error:
        yield from error.found


def count_targets(table: FlowActionsTable) -> int:
    """Give the number of targets that a table may have: so many marks may be needed."""
    return table.targets
