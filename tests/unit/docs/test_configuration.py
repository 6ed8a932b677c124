# SPDX-License-Identifier: Apache-2.0
"""The guide to the configuration names every key that exists, with its default, and no other."""

from __future__ import annotations

import re

import pytest

from nfcore.api.config import ConfigTable, InterfaceTable, MarkingTable, NfTable, OffloadTable
from nfcore.plugins.flow_actions.config import FlowActionsTable
from nfcore.plugins.flow_actions.entries import EntryTable
from nfcore.plugins.katran_accel.config import (
    FLAG_NAMES,
    DecapAddress,
    DecapTable,
    HealthcheckTable,
    KatranTable,
    RealTable,
    ServerIdTable,
    SourceRouteTable,
    VipTable,
)
from nfcore.plugins.softnic import SoftnicTable
from nfcore.plugins.stats.config import StatsTable
from nfcore.plugins.tc_offload import DeviceTable, TcOffloadTable
from tests.paths import ROOT

GUIDE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
TABLES = {
    "`[nf]`": NfTable,
    "`[[interfaces]]`": InterfaceTable,
    "`[marking]`": MarkingTable,
    "`[offload]`": OffloadTable,
    "`[katran_accel]`": KatranTable,
    "`[[katran_accel.vips]]`": VipTable,
    "`[[katran_accel.vips.reals]]`": RealTable,
    "`[[katran_accel.server_ids]]`": ServerIdTable,
    "`[[katran_accel.source_routes]]`": SourceRouteTable,
    "`[katran_accel.decap]`": DecapTable,
    "`[[katran_accel.decap.addresses]]`": DecapAddress,
    "`[katran_accel.healthcheck]`": HealthcheckTable,
    "`[flow_actions]`": FlowActionsTable,
    "`[[flow_actions.flows]]`": EntryTable,
    "`[tc_offload]`": TcOffloadTable,
    "`[tc_offload.devices.NAME]`": DeviceTable,
    "`[softnic]`": SoftnicTable,
    "`[stats]`": StatsTable,
}


def rows(heading: str) -> dict[str, str]:
    """Key → default, as the section's table has them."""
    section = re.split(r"^#+ ", GUIDE.split(f"# {heading}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE))


@pytest.mark.parametrize("heading", TABLES)
def test_the_guide_lists_the_keys_of_each_table(heading: str) -> None:
    model = TABLES[heading]
    assert list(rows(heading)) == list(model.model_fields)


@pytest.mark.parametrize("heading", TABLES)
def test_the_guide_has_the_defaults(heading: str) -> None:
    model: type[ConfigTable] = TABLES[heading]
    for key, default in rows(heading).items():
        field = model.model_fields[key]
        if field.is_required():
            assert default == "required", key
        elif field.default is None:
            assert default == "none", key
        elif isinstance(field.default, ConfigTable):
            assert default == "`{}`" and field.default == type(field.default)(), key
        else:
            plain = default.strip("`").strip('"')
            assert plain == str(field.default).replace("'", '"').replace("False", "false").replace("True", "true"), key


def test_the_guide_has_the_flags_of_vips() -> None:
    assert sorted(rows("Flags of VIPs")) == sorted(FLAG_NAMES)
