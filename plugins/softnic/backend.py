# SPDX-License-Identifier: Apache-2.0
"""Rules into the emulated NIC's table and back: what a driver does, by map operations."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfcore.errors import HostError
from nfcore.kernel import Map, MapSpec, pinned_entries
from nfcore.rules import INSTALLED_ROW, Capabilities, Outcome, Outcomes, RuleBatch

from .layouts import MATCH, RULE, STATS_SPEC, rules_spec


class SoftnicBackend:
    """One emulated NIC, opened by its pins. Used by one thread at a time, but for :meth:`counters`."""

    def __init__(self, rules: Map, stats: Map) -> None:
        self._rules = rules
        self._stats = stats

    @classmethod
    def open(cls, pin_dir: Path, where: str) -> SoftnicBackend:
        """Open the NIC pinned in `pin_dir`; HostError names `where`, the TOML key, when there is none."""
        pin = pin_dir / "softnic_rules"
        if not pin.exists():
            raise HostError(
                f"{where}: there is no softnic in {pin_dir}; "
                f"make one: nfcore softnic create --wire IF --port IF --pin {pin_dir}"
            )
        spec: MapSpec = rules_spec(pinned_entries(pin))
        return cls(Map.open_pinned(pin, spec), Map.open_pinned(pin_dir / "softnic_stats", STATS_SPEC))

    def close(self) -> None:
        """Let go of the NIC's maps; the NIC stays."""
        self._rules.close()
        self._stats.close()

    def capabilities(self) -> Capabilities:
        """Everything that the framework asks for."""
        return Capabilities(mark_width=32, table_size=self._rules.spec.max_entries)

    def install(self, rules: RuleBatch) -> Outcomes:
        """Install rules; those beyond the table's size are FULL. A rule of the same match is replaced."""
        outcomes = Outcomes.all(Outcome.INSTALLED, len(rules))
        keys, values = _matches(rules), np.zeros(len(rules), dtype=RULE)
        values["action"], values["mark"] = rules.rows["action"], rules.rows["mark"]
        values["cookie"] = rules.rows["cookie"]
        done = 0
        while done < len(rules):
            result = self._rules.update_batch(keys[done:], values[done:])
            done += result.done
            if done == len(rules):
                break
            # The kernel refused row `done`; later rows may replace rules that are there, so go on behind it.
            full = result.errno in (errno.E2BIG, errno.ENOMEM)
            outcomes.status[done] = Outcome.FULL if full else Outcome.FAILED
            if not full:
                outcomes.words[done] = f"softnic: {errno.errorcode.get(result.errno, result.errno)}"
            done += 1
        return outcomes

    def remove(self, rules: RuleBatch) -> Outcomes:
        """Remove rules by match; one that is another's by now (other cookie) is ABSENT and stays."""
        outcomes = Outcomes.all(Outcome.ABSENT, len(rules))
        keys = _matches(rules)
        found, values = self._rules.lookup_batch_keys(keys)
        mine = found & (values["cookie"] == rules.rows["cookie"])
        self._rules.delete_batch(keys[mine])
        outcomes.status[mine] = Outcome.REMOVED
        return outcomes

    def dump(self) -> NDArray[np.void]:
        """Give all rules with their counters."""
        keys, values = self._rules.lookup_all()
        rows = np.zeros(len(keys), dtype=INSTALLED_ROW)
        rule = rows["rule"]
        rule["key"], rule["family"] = keys["flow"], keys["family"]
        for name in ("action", "mark", "cookie"):
            rule[name] = values[name]
        for name in ("packets", "bytes", "last_used"):
            rows[name] = values[name]
        return rows

    def counters(self) -> NDArray[np.uint64]:
        """Give the NIC's own counters by :class:`layouts.NicCounter`, summed over the CPUs."""
        total: NDArray[np.uint64] = self._stats.read_array().sum(axis=1).astype(np.uint64)
        return total


def _matches(rules: RuleBatch) -> NDArray[np.void]:
    keys = np.zeros(len(rules), dtype=MATCH)
    keys["flow"], keys["family"] = rules.rows["key"], rules.rows["family"]
    return keys
