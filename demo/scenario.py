# SPDX-License-Identifier: Apache-2.0
"""The TOML of the chaos: the example's with other values, rewritten by its events."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .host_state import BALANCER_PINS
from .lab import Real

NIC_RULES = 48
"""Rules that fit into the NIC: fewer than there are connections."""
FIRST_RULES = 16
"""`max_rules` at first: fewer than fit into the NIC."""
_VALUES: Mapping[str, Mapping[str, object]] = {
    # Program, maps and connection tables outlive a SIGKILL.
    "katran_accel": {"pin_dir": str(BALANCER_PINS)},
    # min_packets: more than a connection of one request sends. idle_timeout: short, since connections come and go.
    "offload": {"min_packets": 8, "max_rules": FIRST_RULES, "idle_timeout": "4s", "counter_lag": "200ms"},
}


class Scenario:
    """A TOML file at `path`, derived from `base`, and its present values."""

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
        """Leave a real out."""
        self._vips_with(real, None)

    def bring_back(self) -> None:
        """Write all reals with their first weights again."""
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
        # Replaced in one step: the daemon must not read half a file.
        draft = self.path.with_suffix(".new")
        draft.write_text("# Written by ./demo.sh --chaos\n" + "\n".join(_lines((), self._settings)) + "\n")
        draft.replace(self.path)


def _lines(names: Sequence[str], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table as lines of TOML: its values, then the tables and lists of tables in it."""
    subtables = {key: value for key, value in table.items() if len(names) < 2 and _is_table(value)}
    for key, value in table.items():
        if key not in subtables:
            yield f"{key} = {_inline(value)}"
    for key, value in subtables.items():
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
    # Strings, numbers, true and false are written alike in JSON and TOML.
    return json.dumps(value)
