# SPDX-License-Identifier: Apache-2.0
"""Changes at run time: what is there afterwards, which ids are invalid then, and what is refused as in the TOML."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfcore.errors import ConfigError
from nfcore.plugins.katran_accel.config import KatranTable
from nfcore.plugins.katran_accel.entries import SERVER_ID
from nfcore.plugins.katran_accel.entry_checks import SERVER_IDS, SOURCE_ROUTES, Kind
from nfcore.plugins.katran_accel.entry_files import MOST_MISTAKES
from nfcore.plugins.katran_accel.routing import Routing, all_reals, reals_of_table
from nfcore.plugins.katran_accel.routing_changes import RoutingChange

from .test_config import vip

A, B, SIX = "198.18.20.11", "198.18.20.12", "2001:db8:20::11"


def table(**keys: Any) -> KatranTable:
    ids = [{"id": 7, "real": A}, {"id": 8, "real": B}, {"id": 9, "real": B}]
    return KatranTable.model_validate({"vips": [vip()], "server_ids": ids} | keys)


def begin(*invalid: int, **keys: Any) -> Routing:
    return Routing.of(table(**keys)).with_invalid(np.array(invalid, SERVER_ID))


def apply(
    routing: Routing, kind: Kind = SERVER_IDS, of: KatranTable | None = None, **parameters: Any
) -> tuple[Routing, dict[str, int]]:
    made = RoutingChange(kind, parameters, table() if of is None else of, "m")
    return made.apply(routing), made.counts


def change(routing: Routing, kind: Kind = SERVER_IDS, of: KatranTable | None = None, **parameters: Any) -> Routing:
    return apply(routing, kind, of, **parameters)[0]


def ids(routing: Routing) -> dict[int, str]:
    """Ids with their reals; invalid ones have none."""
    entries = routing.server_ids
    return {
        int(key): "" if routing.invalid[place] else str(entries.real(place)) for place, key in enumerate(entries.keys)
    }


def pairs(**reals: str) -> list[dict[str, Any]]:
    return [{"id": int(name[1:]), "real": real} for name, real in reals.items()]


def refusal(routing: Routing, kind: Kind = SERVER_IDS, of: KatranTable | None = None, **parameters: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        change(routing, kind, of, **parameters)
    return [str(problem) for problem in refused.value.problems]


def test_nothing_changes_nothing() -> None:
    before = begin(8)
    after, counts = apply(before)
    assert ids(after) == ids(before) == {7: A, 8: "", 9: B}
    assert not any(counts.values())


def test_all_of_a_change_is_made_in_one_order() -> None:
    after, counts = apply(begin(8), remove=[7, 8], add=pairs(_7=B, _8=B, _1=SIX), invalidate=[1, 9], restore=[8])
    # What is added is valid, whatever it was before.
    assert ids(after) == {1: "", 7: B, 8: B, 9: ""}
    assert counts == {"added": 3, "removed": 2, "invalidated": 2, "restored": 0}


def test_what_is_replaced_keeps_its_state_where_it_stays_the_same() -> None:
    after, counts = apply(begin(7, 8), replace=True, add=pairs(_7=A, _8=A))
    assert ids(after) == {7: "", 8: A}
    assert counts == {"added": 1, "removed": 2, "invalidated": 0, "restored": 0}


def test_replace_and_remove_exclude_each_other() -> None:
    said = "remove: has no meaning beside replace, which removes all that is not added"
    assert refusal(begin(), replace=True, remove=[7]) == [said]


def test_an_id_that_is_gone_is_forgotten() -> None:
    gone = begin(7, 9).with_invalid(np.array([9, 1000], SERVER_ID))
    assert ids(gone) == {7: A, 8: B, 9: ""}
    assert ids(change(change(gone, remove=[9]), add=pairs(_9=B))) == {7: A, 8: B, 9: B}


def test_a_new_family_needs_its_source_and_the_array_its_limit() -> None:
    gue = table(encapsulation="gue", source_v4="198.18.2.2")
    said = 'katran_accel.source_v6: is not set; with encapsulation = "gue", packets to IPv6 reals such as '
    (problem,) = refusal(begin(), of=gue, add=pairs(_1=SIX))
    assert problem.startswith(said)
    both = table(encapsulation="gue", source_v4="198.18.2.2", source_v6="2001:db8:2::2")
    assert change(begin(), of=both, add=pairs(_1=SIX)).server_ids.real(0) == ip_address(SIX)
    (problem,) = refusal(begin(), add=pairs(_16777214=A))
    assert problem.startswith('add[0]: is 16777214; with server_id_map = "array" ids go to 16,777,213')
    assert 16_777_214 in ids(change(begin(), of=table(server_id_map="hash"), add=pairs(_16777214=A)))


def test_ipv6_clients_reach_ipv4_reals_by_gue_alone() -> None:
    rows = [{"prefix": "2001:db8::/32", "real": A}]
    (problem,) = refusal(begin(), SOURCE_ROUTES, add=rows)
    assert problem.startswith(f"add[0]: '2001:db8::/32' cannot lead to '{A}'")
    gue = table(encapsulation="gue", source_v4="198.18.2.2")
    assert len(change(begin(), SOURCE_ROUTES, of=gue, add=rows).source_routes) == 1


def test_many_mistakes_are_told_up_to_a_limit() -> None:
    told = refusal(begin(), remove=list(range(100, 200)))
    assert len(told) == MOST_MISTAKES + 1 and told[-1] == "80 more mistakes"
    assert refusal(begin(), add=[{"id": 0, "real": "x"}, 5, {"real": A}]) == [
        "add[0].id: is 0; Input should be greater than or equal to 1",
        "add[0].real: is 'x'; should be an IPv4 or IPv6 address such as '198.18.20.11'",
        "add[1]: is 5; should be an object with the keys id and real",
        "add[2].id: is missing",
    ]


def test_the_reals_of_lists_and_files_are_reals(tmp_path: Path) -> None:
    path = tmp_path / "routes.csv"
    path.write_text(f"198.18.7.0/24,{SIX}\n198.18.8.0/24,198.18.20.99\n")
    with_file = table(source_routes_file=str(path))
    assert [str(real) for real in reals_of_table(with_file)] == [A, B, SIX, "198.18.20.99"]
    assert all_reals(with_file, Routing.of(with_file)) == reals_of_table(with_file)
