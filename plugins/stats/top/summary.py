# SPDX-License-Identifier: Apache-2.0
"""The daemon's method ``top``: all that `nfcore top` needs in one answer (metrics, hottest flows, reals of a VIP)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from nfcore.api.context import Context
from nfcore.api.json_rows import JsonRows
from nfcore.api.metrics import MetricFamily
from nfcore.errors import ConfigError, Problem

from ..registry import Registry
from .model import WAYS

FAMILIES = (
    "nfcore_function_packets_total",
    "nfcore_packets_total",
    "nfcore_vip_packets_total",
    "nfcore_vip_bytes_total",
    "nfcore_real_packets_total",
    "nfcore_real_bytes_total",
    "nfcore_vip_path_packets_total",
    "nfcore_real_path_packets_total",
    "nfcore_vip_new_flows_total",
    "nfcore_reports_lost_total",
    "nfcore_not_offloaded_total",
    "nfcore_drops_total",
    "nfcore_hook_errors_total",
    "nfcore_marks_in_use",
    "nfcore_rules",
    "nfcore_rules_capacity",
    "nfcore_nic_full",
    "nfcore_counters_age_seconds",
    "nfcore_program_attached",
    *(family for family, _ in WAYS.values()),
)
"""Metrics in the answer. `nfcore top` shows those that the daemon does not have as unknown."""
_TYPES = {"match": str, "sort": str, "vip": str, "limit": int, "reverse": bool, "ended": bool}
MOST_FLOWS = 200


def summarise(context: Context, registry: Registry, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of ``top``. match, sort, reverse, limit: as in ``flows``; vip: only its reals and flows;
    ended: also flows that have ended.

    ConfigError names a wrong parameter.
    """
    for name, value in parameters.items():
        if name not in _TYPES or not isinstance(value, _TYPES[name]):
            known = "match, sort, vip (texts), limit (a number), reverse, ended (true or false)"
            raise ConfigError("top", [Problem(name, f"is {value!r}; parameters are {known}")])
    vip = parameters.get("vip", "")
    match = f"{parameters.get('match', '')} {vip}".strip()
    limit = min(int(parameters.get("limit", 50)), MOST_FLOWS)
    query = {"match": match, "sort": parameters.get("sort") or "rate", "limit": limit}
    query |= {key: parameters.get(key, False) for key in ("reverse", "ended")}
    flows = context.services.methods["flows"](query)
    return {
        "values": {family.name: JsonRows(partial(_samples, family)) for family in registry.of(FAMILIES)},
        "flows": JsonRows(lambda: (row for row in flows["flows"] if not vip or row.get("vip") == vip)),
        "states": flows["states"],
        "offload": flows["offload"],
        "max_rules": context.config.offload.max_rules,
        "strategy": context.strategy.name if context.strategy else None,
        "troubles": [*context.services.health.troubles(), *context.services.health.warnings()],
        "interfaces": {device.name: list(device.backends) for device in context.devices},
        "vip": vip,
        "reals": _reals_of(context, vip) if vip else [],
    }


def _samples(family: MetricFamily) -> Iterator[list[Any]]:
    yield from ([dict(sample.labels), sample.value] for sample in family.everything())


def _reals_of(context: Context, vip: str) -> list[str]:
    """Names of the reals that a VIP has in the current configuration."""
    names = [dict(nf.describe(target)) for nf in context.nfs for target in nf.targets().rows["target"].tolist()]
    return sorted({name["real"] for name in names if name.get("vip") == vip and "real" in name})
