# SPDX-License-Identifier: Apache-2.0
"""`[katran_accel]` beside its VIPs: what fits together, what is refused, and what is only remarked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nfcore.errors import Remark
from nfcore.plugins.katran_accel import layouts as lay
from nfcore.plugins.katran_accel.config import KatranTable, check_table
from nfcore.plugins.katran_accel.feature_checks import check_features

from .test_config import vip

ONE, OTHER, SIX = "198.18.20.11", "198.18.20.12", "2001:db8:20::11"
UDP: dict[str, Any] = {"protocol": "udp", "port": 443}


def found(**table: Any) -> list[str]:
    """Problems of a table; those that are only remarked begin with a question mark."""
    raw = {"vips": [vip()]} | table
    problems = [*check_table(raw, "k"), *check_features(raw, "k")]
    return ["? " * isinstance(problem, Remark) + str(problem) for problem in problems]


def ids(*pairs: tuple[int, str]) -> list[dict[str, Any]]:
    return [{"id": number, "real": real} for number, real in pairs]


def routes(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"prefix": prefix, "real": real} for prefix, real in pairs]


QUIC = [vip(flags=["quic"], **UDP)]
ROUTED = [vip(flags=["src_routing"])]


def test_a_plain_table_has_nothing_to_tell() -> None:
    assert found() == []
    assert found(vips=QUIC, server_ids=ids((1, ONE), (2, OTHER))) == []
    assert found(vips=ROUTED, source_routes=routes(("198.18.7.0/24", ONE), ("2001:db8:7::/48", SIX))) == []


@pytest.mark.parametrize(("reals", "version", "example"), [([ONE], 4, ONE), ([SIX], 6, SIX)])
def test_gue_needs_a_source_for_each_family_of_reals(reals: list[str], version: int, example: str) -> None:
    vips = [vip(reals=[{"address": real} for real in reals])]
    wanted = f'k.source_v{version}: is not set; with encapsulation = "gue", packets to IPv{version} reals such as '
    wanted += f"{example} need an IPv{version} address of this host as their source"
    assert found(vips=vips, encapsulation="gue") == [wanted]
    assert found(vips=vips, encapsulation="gue", **{f"source_v{version}": "given"}) == []
    assert found(vips=vips, encapsulation="ipip") == []


def test_the_reals_of_ids_and_routes_need_a_source_too() -> None:
    table: dict[str, Any] = {"encapsulation": "gue", "source_v4": "198.18.2.2"}
    (six,) = found(vips=QUIC, server_ids=ids((1, SIX)), **table)
    assert six.startswith("k.source_v6: is not set")
    (six,) = found(vips=ROUTED, source_routes=routes(("198.18.7.0/24", SIX)), **table)
    assert six.startswith("k.source_v6: is not set")


def test_ipv6_reaches_ipv4_reals_by_gue_alone() -> None:
    vips = [vip("2001:db8:10::1", reals=[{"address": ONE}], flags=["src_routing"])]
    listed = routes(("2001:db8:7::/48", ONE))
    assert found(vips=vips, source_routes=listed) == [
        f"k.vips[0].reals[0].address: '{ONE}' cannot serve an IPv6 VIP: by IPIP, IPv6 is encapsulated in IPv6 only; "
        'give it an IPv6 real, or set katran_accel.encapsulation = "gue"',
        f"k.source_routes[0]: '2001:db8:7::/48' cannot lead to '{ONE}': by IPIP, IPv6 is encapsulated in IPv6 only; "
        'give it an IPv6 real, or set katran_accel.encapsulation = "gue"',
    ]
    assert found(vips=vips, source_routes=listed, encapsulation="gue", source_v4="198.18.2.2") == []


def test_ids_of_ipv4_reals_and_an_ipv6_vip() -> None:
    vips = [vip("2001:db8:10::1", reals=[{"address": SIX}], flags=["quic"], **UDP)]
    (remark,) = found(vips=vips, server_ids=ids((1, ONE), (2, SIX)))
    assert remark.startswith(
        "? k.server_ids: has 1 ids of IPv4 reals: packets of the IPv6 VIP k.vips[0] that name them"
    )


def test_an_id_is_there_once() -> None:
    assert found(vips=QUIC, server_ids=ids((7, ONE), (8, ONE), (7, OTHER), (8, ONE))) == [
        f"k.server_ids[2]: '7' is already k.server_ids[0], with the real '{ONE}'; list each once",
        "? k.server_ids[3]: '8' is already k.server_ids[1], with the same real",
    ]


def test_a_prefix_is_there_once_however_it_is_written() -> None:
    listed = routes(("198.18.7.1/32", ONE), ("2001:db8::/32", SIX), ("198.18.7.1", OTHER), ("2001:DB8:0::/32", SIX))
    assert found(vips=ROUTED, source_routes=listed) == [
        f"k.source_routes[2]: '198.18.7.1' is already k.source_routes[0], with the real '{ONE}'; list each once",
        "? k.source_routes[3]: '2001:db8::/32' is already k.source_routes[1], with the same real",
    ]
    # Equal bytes of two families are two prefixes.
    assert found(vips=ROUTED, source_routes=routes(("198.18.0.0/16", ONE), ("c612::/16", SIX))) == []


def test_ids_that_an_array_cannot_hold() -> None:
    most = lay.MAX_SERVER_IDS
    listed = ids((most - 1, ONE), (most, ONE))
    assert found(vips=QUIC, server_ids=listed) == [
        'k.server_ids[1]: is 16777214; with server_id_map = "array" ids go to 16,777,213: '
        'set katran_accel.server_id_map = "hash"'
    ]
    assert found(vips=QUIC, server_ids=listed, server_id_map="hash") == []


def test_long_ids_that_nothing_reads() -> None:
    table: dict[str, Any] = {"server_id_map": "hash", "server_ids": ids((1 << 24, ONE), (5, ONE))}
    stable = [vip(flags=["udp_stable_routing"], **UDP)]
    (remark,) = found(vips=stable, **table)
    assert remark.startswith(
        "? k.server_ids: has 1 ids above 16,777,215: only QUIC connection ids of version 3 and TCP"
    )
    assert found(vips=QUIC, **table) == found(vips=[*stable, vip()], tcp_server_ids=True, **table) == []


def test_ids_and_routes_that_nothing_reads() -> None:
    assert found(server_ids=ids((1, ONE)), source_routes=routes(("198.18.7.0/24", ONE))) == [
        "? k.server_ids: has 1 ids that nothing reads: no VIP has the flag 'quic' or 'udp_stable_routing', "
        "and none is TCP with tcp_server_ids = true",
        "? k.source_routes: has 1 routes that nothing reads: no VIP has the flag 'src_routing'",
    ]
    assert found(server_ids=ids((1, ONE)), tcp_server_ids=True) == []
    (remark,) = found(vips=[vip(**UDP)], server_ids=ids((1, ONE)), tcp_server_ids=True)
    assert "nothing reads" in remark


@pytest.mark.parametrize("flag", ["quic", "udp_stable_routing", "udp_flow_migration"])
def test_flags_of_udp_on_a_tcp_vip(flag: str) -> None:
    assert found(vips=[vip(flags=[flag])]) == [
        f"k.vips[0].flags: has '{flag}', which is for UDP; the VIP is TCP: leave the flag out"
    ]
    assert found(vips=[vip(flags=[flag], **UDP)]) == []


def test_flows_of_a_prefix_cannot_migrate() -> None:
    flags = ["udp_flow_migration"]
    assert found(vips=[vip("198.18.10.0/24", flags=flags, **UDP)]) == [
        "k.vips[0].flags: has 'udp_flow_migration', which works by a VIP's address; "
        "this one is the prefix '198.18.10.0/24': write a VIP for each address"
    ]
    assert found(vips=[vip("198.18.10.0/32", flags=flags, **UDP)]) == []


def test_a_real_is_this_host_for_all_vips_or_for_none() -> None:
    here, there = [{"address": ONE, "local": True}], [{"address": ONE}]
    flags = ["local"]
    assert found(vips=[vip(reals=here, flags=flags), vip(port=81, reals=there, flags=flags)]) == [
        f"k.vips[1].reals[0].local: is false for '{ONE}', and true in k.vips[0].reals[0]; "
        "should be the same in each VIP"
    ]
    assert found(vips=[vip(reals=here, flags=flags), vip(port=81, reals=here, flags=flags)]) == []


def test_states_that_nothing_reads() -> None:
    reals = [{"address": ONE, "local": True}, {"address": OTHER, "down": True}]
    assert found(vips=[vip(reals=reals)]) == [
        "? k.vips[0].reals[0].local: is true, but the VIP has no flag 'local': its packets are tunnelled",
        "? k.vips[0].reals[1].down: is true, but the VIP has no flag 'udp_flow_migration': it counts as weight 0",
    ]
    assert found(vips=[vip(reals=reals, flags=["local", "udp_flow_migration"], **UDP)]) == []


def test_a_vip_whose_reals_are_all_down() -> None:
    reals = [{"address": ONE, "down": True}, {"address": OTHER, "weight": 0}]
    (remark,) = found(vips=[vip(reals=reals, flags=["udp_flow_migration"], **UDP)])
    assert remark.startswith("? k.vips[0].reals: have weight 0, all of them")


def test_tunnels_ends() -> None:
    addresses = [{"address": each} for each in ("198.18.2.2", "2001:db8::2", "198.18.2.2", "198.18.10.1")]
    said = [
        "k.decap.addresses[2].address: '198.18.2.2' is already addresses[0]; list each address once",
        "? k.decap.addresses[3].address: '198.18.10.1' is the VIP of k.vips[0], too; "
        "should be an address at which tunnels end",
    ]
    assert found(decap={"gue": True, "addresses": addresses}) == said
    off = "but neither ipip nor gue is true: no packet is taken out of a tunnel"
    assert found(decap={"strict": True, "addresses": addresses}) == [
        *said,
        f"? k.decap.addresses: has 3 of them, {off}",
        f"? k.decap.strict: is true, {off}",
    ]


def test_all_reals_together_have_to_fit() -> None:
    many = [f"2001:db8::{number:x}" for number in range(1, lay.MAX_REALS)]
    vips = [vip(flags=["src_routing"], reals=[{"address": real} for real in many[:-2]])]
    table: dict[str, Any] = {"vips": vips, "tcp_server_ids": True}
    listed = ids((1, many[-2]), (2, many[-1])), routes(("198.18.7.0/24", many[-1]), ("198.18.8.0/24", many[0]))
    assert found(**table, server_ids=listed[0], source_routes=listed[1]) == []
    assert found(**table, server_ids=listed[0], source_routes=[*listed[1], *routes(("198.18.9.0/24", SIX))]) == [
        "k.vips: has 4,096 different reals, with those of server_ids and source_routes; at most 4,095 fit"
    ]


# Files


def write(folder: Path, *lines: str) -> str:
    path = folder / "list.csv"
    path.write_text("\n".join(lines))
    return str(path)


def test_a_file_adds_to_the_list(tmp_path: Path) -> None:
    path = write(tmp_path, "# comment", "", f"8,{OTHER}", f" 7 , {OTHER}  # not its real", f"8,{OTHER}")
    assert found(vips=QUIC, server_ids=ids((7, ONE)), server_ids_file=path) == [
        f"k.server_ids_file: {path}, line 4: '7' is already k.server_ids[0], with the real '{ONE}'; list each once",
        f"? k.server_ids_file: {path}, line 5: '8' is already {path}, line 3, with the same real",
    ]


def test_the_lines_that_are_wrong(tmp_path: Path) -> None:
    wanted = "should be a server id from 1 to 4,294,967,295, written without separators"
    path = write(tmp_path, "1_0,198.18.20.1", f"9,{ONE}", "5", "6,127.0.0.1", "4294967296,198.18.20.1")
    assert found(vips=QUIC, server_ids_file=path) == [
        f"k.server_ids_file: {path}, line 1: '1_0' is no server id; {wanted}",
        f"k.server_ids_file: {path}, line 3: '' is no real; should be an IPv4 or IPv6 address such as '198.18.20.11'",
        f"k.server_ids_file: {path}, line 4: '127.0.0.1' is no real; "
        "should be the address of one server, not a loopback address",
        f"k.server_ids_file: {path}, line 5: '4294967296' is no server id; {wanted}",
    ]


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("198.18.7.1/24", "has host bits; should be '198.18.7.0/24'"),
        ("2001:db8::1/32", "has host bits; should be '2001:db8::/32'"),
        ("198.18.7.0/33", "is no prefix; should be an IPv4 or IPv6 address, or a prefix such as '198.18.7.0/24'"),
        ("198.18.7.0/", "is no prefix; should be"),
        ("198.18.7.0/+8", "is no prefix; should be"),
        ("198.18.7", "is no prefix; should be"),
        ("2001:db8::1%eth0", "is no prefix; should be"),
        ("\0", "is no prefix; should be"),
        ("é" * 100, "is no prefix; should be"),
    ],
)
def test_prefixes_that_are_none(tmp_path: Path, prefix: str, said: str) -> None:
    path = write(tmp_path, f"{prefix},{ONE}")
    (message,) = found(vips=ROUTED, source_routes_file=path)
    assert message.startswith(f"k.source_routes_file: {path}, line 1: '") and said in message


def test_only_the_first_mistakes_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, *["odd"] * 300, *(f"{number},{ONE}" for number in range(1, 300)), *[f"1,{OTHER}"] * 300)
    messages = found(vips=QUIC, server_ids_file=path)
    assert len(messages) == 42
    assert messages[20] == f"k.server_ids_file: {path}: 280 more lines are wrong"
    assert messages[41] == "k.server_ids_file: 280 more are there twice, with another real"


def test_too_many_prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lay, "MAX_SOURCE_ROUTES", 2)
    path = write(tmp_path, f"198.18.7.0/24,{ONE}", f"2001:db8::/32,{SIX}", f"198.18.8.0/24,{ONE}")
    assert found(vips=ROUTED, source_routes_file=path) == []
    assert found(vips=ROUTED, source_routes_file=path, source_routes=routes(("198.18.9.0/24", ONE))) == [
        "k.source_routes: has 3 IPv4 prefixes, with those of its file; at most 2 fit"
    ]


def test_an_id_or_a_route_that_leads_to_a_vip_is_remarked() -> None:
    service = str(vip()["address"])
    text = f"'{service}' is that of k.vips[0], too: a packet sent there may come back"
    assert found(vips=QUIC, server_ids=ids((1, ONE), (2, service))) == [f"? k.server_ids[1]: {text}"]
    assert found(vips=ROUTED, source_routes=routes(("198.18.7.0/24", service))) == [f"? k.source_routes[0]: {text}"]


@pytest.mark.parametrize(
    ("value", "should"),
    [
        ("127.0.0.1", "should be the address of one server, not a loopback address"),
        ("198.18.2", "should be an IPv4 or IPv6 address such as '198.18.20.11'"),
        ("2001:db8::1", "should be an IPv4 address"),
    ],
)
def test_the_source_of_tunnels_is_an_address_of_a_host(value: str, should: str) -> None:
    with pytest.raises(ValidationError, match=should):
        KatranTable.model_validate({"vips": [vip()], "source_v4": value})
