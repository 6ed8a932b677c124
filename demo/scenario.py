# SPDX-License-Identifier: Apache-2.0
"""The TOML of the chaos: the example's with other values, rewritten as the story goes on."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .lab import Real
from .traces import BALANCER_PINS

NIC_RULES = 48
"""Room in the NIC, for fewer flows than there are connections alive."""
FIRST_RULES = 16
"""`max_rules` at first, less than the NIC has room for."""
_VALUES: Mapping[str, Mapping[str, object]] = {
    # Kept over a SIGKILL: program, maps, connection tables.
    "katran_accel": {"pin_dir": str(BALANCER_PINS)},
    # More packets than a connection of one request shows; soon idle, since connections come and go.
    "offload": {"min_packets": 8, "max_rules": FIRST_RULES, "idle_timeout": "4s", "counter_lag": "200ms"},
}


class Scenario:
    """A TOML file at `path`, derived from `base`, and what it says now."""

    def __init__(self, base: Path, path: Path) -> None:
        self.path = path
        self._settings = tomllib.loads(base.read_text())
        for table, values in _VALUES.items():
            self._settings[table] |= values
        self._vips: list[dict[str, Any]] = copy.deepcopy(self._settings["katran_accel"]["vips"])
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def allow(self, max_rules: int) -> None:
        """Write another `max_rules`."""
        self._settings["offload"]["max_rules"] = max_rules
        self._write()

    def weigh(self, real: Real, weight: int) -> None:
        """Write another weight of a real, for both families."""
        self._vips_with(real, {"weight": weight})

    def remove(self, real: Real) -> None:
        """Write no such real."""
        self._vips_with(real, None)

    def bring_back(self) -> None:
        """Write all reals with the weights that they had at first."""
        self._settings["katran_accel"]["vips"] = copy.deepcopy(self._vips)
        self._write()

    def _vips_with(self, real: Real, change: Mapping[str, object] | None) -> None:
        vips = copy.deepcopy(self._vips)
        for vip in vips:
            vip["reals"] = [
                each | change if change and each["address"] in (real.v4, real.v6) else each
                for each in vip["reals"]
                if change or each["address"] not in (real.v4, real.v6)
            ]
        self._settings["katran_accel"]["vips"] = vips
        self._write()

    def _write(self) -> None:
        # In one step: the daemon must never read half a file.
        draft = self.path.with_suffix(".new")
        draft.write_text("# Written by ./demo.sh --chaos\n" + "\n".join(_lines((), self._settings)) + "\n")
        draft.replace(self.path)


def _lines(names: Sequence[str], table: Mapping[str, Any]) -> Iterator[str]:
    """A table as TOML: its values, then the tables and lists of tables in it."""
    deeper = {key: value for key, value in table.items() if len(names) < 2 and _is_table(value)}
    for key, value in table.items():
        if key not in deeper:
            yield f"{key} = {_inline(value)}"
    for key, value in deeper.items():
        name = ".".join([*names, key])
        for each in value if isinstance(value, list) else [value]:
            yield f"\n[[{name}]]" if isinstance(value, list) else f"\n[{name}]"
            yield from _lines([*names, key], each)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(each) for each in value) + "]"
    # What JSON writes for texts, numbers, true and false is TOML, too.
    return json.dumps(value)
