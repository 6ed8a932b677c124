# SPDX-License-Identifier: Apache-2.0
"""Entries as people and programs write them: what is right becomes rows, each mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.config import Section
from nfcore.api.flows import Anything, FlowMatch
from nfcore.config.reader import Reader
from nfcore.errors import ConfigError
from nfcore.plugins.flow_actions.config import FlowActionsTable, check_table
from nfcore.plugins.flow_actions.entries import Entries, EntryError, check_machine, parse_orders
from nfcore.plugins.flow_actions.orders import interfaces_here, online_cpus

GOOD: dict[str, Any] = {"name": "x", "src": "198.18.1.1", "action": "drop"}


def test_an_exact_entry() -> None:
    order = {**GOOD, "dst": "198.18.10.1", "proto": "tcp", "sport": 1000, "dport": 80, "ttl": "10m", "priority": 7}
    entries = parse_orders([order])
    row = entries.rows[0]
    assert FlowMatch.from_key(row["key"], 4) == FlowMatch.parse("198.18.1.1:1000 > 198.18.10.1:80/tcp")
    assert (int(row["precedence"]), entries.lives.tolist()) == (104 << 16 | 7, [600.0])


def test_a_masked_entry() -> None:
    row = parse_orders([{**GOOD, "src": "2001:db8::/32"}]).rows[0]
    assert str(FlowMatch.from_key(row["key"], 6)) == "[2001:db8::/32]:* > [::/128]:*/*".replace("::/128", "::/0")
    assert int(row["key"]["wild"][2]) == Anything.SPORT | Anything.DPORT | Anything.PROTO
    assert int(row["precedence"]) == 32 << 16


def test_entries_with_the_same_action_share_a_target_but_for_police() -> None:
    police = {"action": "police", "packets_per_second": 5, "burst": 5}
    orders = [
        {**GOOD, "name": "a"},
        {**GOOD, "name": "b"},
        {**GOOD, "name": "c", "require": {"src": "198.18.0.0/15"}},
        {**GOOD, "name": "d", "require": {"src": "198.18.0.0/15"}},
        {**GOOD, "name": "e", **police},
        {**GOOD, "name": "f", **police},
    ]
    entries = parse_orders(orders)
    assert entries.action.tolist() == [0, 0, 1, 1, 2, 3]
    assert entries.actions[1].parameters() == {"action": "drop", "require": {"src": "198.18.0.0/15"}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"action": "kill"}, "add[0].action: entry 'x': is 'kill'; input should be 'drop', 'pass', 'count'"),
    ({"name": ""}, "add[0].name: is ''; should be a name of 1 to 64 printable characters"),
    ({"name": "a\nb"}, "should be a name of 1 to 64 printable characters"),
    ({"name": "n" * 65}, "should be a name of 1 to 64"),
    ({"name": 7}, "add[0].name: is 7; should be a name"),
    (
        {"src": "198.18.1.1/16"},
        "add[0].src: entry 'x': is '198.18.1.1/16', which has host bits; should be '198.18.0.0/16'",
    ),
    ({"src": "2001:db8::1/32"}, "which has host bits; should be '2001:db8::/32'"),
    ({"src": "198.18.1"}, "add[0].src: entry 'x': is '198.18.1'; should be an IPv4 or IPv6 address, or a prefix"),
    ({"src": "198.18.1.1/33"}, "is '198.18.1.1/33'; should be an IPv4 or IPv6"),
    ({"src": "198.18.1.1/"}, "is '198.18.1.1/'; should be"),
    ({"src": "fe80::1%lo"}, "is 'fe80::1%lo'; should be"),
    ({"src": "a\0b"}, "should be an IPv4"),
    ({"src": "１９８.18.1.1"}, "should be an IPv4"),
    ({"src": ["198.18.1.1"]}, "add[0].src: entry 'x': is ['198.18.1.1']; input should be a valid string"),
    (
        {"dst": "2001:db8::1"},
        "add[0].dst: entry 'x': is '2001:db8::1' and src is '198.18.1.1'; should be of one family",
    ),
    ({"family": 6}, "add[0].family: entry 'x': is 6, but src is '198.18.1.1'; should be 4"),
    ({"src": None}, "add[0].family: entry 'x': is missing; should be 4 or 6, as neither src nor dst says it"),
    ({"dport": 80}, "add[0].dport: entry 'x': is 80; a port needs proto, which should be 'tcp' or 'udp'"),
    ({"dport": 80, "proto": 1}, "a port needs proto"),
    ({"dport": 0, "proto": "tcp"}, "add[0].dport: entry 'x': is 0; input should be greater than or equal to 1"),
    ({"dport": 1e300, "proto": "tcp"}, "add[0].dport: entry 'x': is 1e+300; input should be a valid integer"),
    ({"dport": 10**400, "proto": "tcp"}, "add[0].dport: entry 'x': is 1000"),
    ({"dport": True, "proto": "tcp"}, "is True; input should be a valid integer"),
    ({"proto": "icmp"}, "add[0].proto: entry 'x': is 'icmp'; should be 'tcp', 'udp' or a number from 0 to 255"),
    ({"ttl": "0s"}, "add[0].ttl: entry 'x': is '0s'; should be a duration longer than 0 and of at most 10 years"),
    ({"ttl": 10}, "add[0].ttl: entry 'x': is 10; should be a duration with its unit"),
    ({"priority": 65536}, "add[0].priority: entry 'x': is 65536; input should be less than or equal to 65535"),
    ({"dscp": 3}, "add[0].dscp: entry 'x': does not belong to action 'drop', which has no parameter"),
    ({"action": "set_dscp"}, "add[0].dscp: entry 'x': is missing; action 'set_dscp' needs it"),
    ({"action": "set_dscp", "dscp": 64}, "is 64; input should be less than or equal to 63"),
    ({"action": "redirect"}, "add[0].interface: entry 'x': is missing; action 'redirect' needs it"),
    ({"action": "redirect", "interface": "x" * 16}, "should be the name of an interface"),
    ({"action": "cpu"}, "add[0].cpu: entry 'x': is missing; action 'cpu' needs it"),
    ({"action": "police", "burst": 5}, "should have one of packets_per_second and bytes_per_second, not none"),
    ({"action": "police", "packets_per_second": 5}, "add[0].burst: entry 'x': is missing; action 'police' needs it"),
    ({"action": "police", "packets_per_second": 0, "burst": 1}, "packets_per_second: entry 'x': is 0; input should be"),
    ({"action": "police", "packets_per_second": 1, "burst": 0}, "add[0].burst: entry 'x': is 0; input should be"),
    ({"action": "police", "packets_per_second": 1, "bytes_per_second": 1, "burst": 1}, "not both"),
    (
        {"action": "police", "bytes_per_second": 15, "burst": 1},
        "add[0].bytes_per_second: entry 'x': is 15; should be from 16 to 1,000,000,000,000",
    ),
    (
        {"action": "police", "packets_per_second": 1, "burst": 31_536_001},
        "add[0].burst: entry 'x': is 31,536,001; should be at most 31,536,000",
    ),
    (
        {"require": {"src": "198.18.1.1/8"}},
        "add[0].require.src: entry 'x': is '198.18.1.1/8'; 198.18.1.1/8 has host bits",
    ),
    (
        {"require": {"src": "198.19.0.0/16"}},
        "add[0].require.src: entry 'x': differs from what the entry itself matches",
    ),
    ({"require": {"proto": 6}}, "add[0].require.proto: entry 'x': differs from what the entry itself"),
    ({"require": {"family": 6}}, "add[0].require.family"),
    ({"require": {"dport": 80}}, "add[0].require.dport: entry 'x': is 80; a port needs proto"),
    (
        {"require": {"sport": 80}},
        "add[0].require.sport: entry 'x': unknown key; known here: src, dst, proto, dport, family",
    ),
    ({"colour": "red"}, "add[0].colour: entry 'x': unknown key; known here: name, src, dst"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[str(keys)[:40] for keys, _ in WRONG])
def test_what_is_wrong_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(EntryError) as caught:
        parse_orders([{**GOOD, **keys}])
    assert message in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("raw", [7, {}, "x", None, [7], [None], [[]], [{}], [{"name": {}}]])
def test_what_is_no_list_of_entries(raw: object) -> None:
    with pytest.raises(ConfigError):
        parse_orders(raw)


def test_all_problems_at_once_but_not_without_end() -> None:
    with pytest.raises(EntryError) as caught:
        parse_orders([{**GOOD, "name": f"e{number}", "src": "x"} for number in range(1000)])
    assert str(caught.value).count("\n") == 20
    assert str(caught.value).endswith("flow: and 980 more")
    assert len(caught.value.details["problems"]) == 20
    assert caught.value.details["problems"][3] == {
        "entry": "e3",
        "index": 3,
        "key": "src",
        "message": "entry 'e3': is 'x'; should be an IPv4 or IPv6 address, or a prefix such as '198.18.10.0/24'",
    }


def test_interfaces_and_cpus_must_be_there() -> None:
    redirect = {**GOOD, "name": "r", "action": "redirect", "interface": "nowhere0"}
    entries = parse_orders([GOOD, redirect, {**GOOD, "name": "c", "action": "cpu", "cpu": 4095}])
    with pytest.raises(EntryError) as caught:
        check_machine(entries, "add", {"lo", "eth0"}, {0, 1, 3})
    assert "add[1].interface: entry 'r': there is no interface 'nowhere0'" in str(caught.value)
    assert "(there are: eth0, lo)" in str(caught.value)
    assert "add[2].cpu: entry 'c': CPU 4095 is not online; there are 0-1,3" in str(caught.value)
    check_machine(entries, "add", {"nowhere0"}, {4095})
    check_machine(entries, "add", {"lo"}, {0}, np.array([0]))


def test_what_is_there_on_this_machine(tmp_path: Path) -> None:
    assert "lo" in interfaces_here()
    assert 0 in online_cpus()
    (tmp_path / "online").write_text("0-2,5\n")
    assert online_cpus(tmp_path / "online") == {0, 1, 2, 5}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["198.18.1.0/24", "tcp"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "name",
    "src",
    "dst",
    "sport",
    "dport",
    "proto",
    "family",
    "action",
    "dscp",
    "burst",
    "require",
    "ttl",
    "offload",
]


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6), max_size=3))
def test_hostile_entries_are_errors_that_have_words(raw: list[Any]) -> None:
    try:
        parse_orders([{**GOOD, "name": f"e{number}", **each} for number, each in enumerate(raw)])
    except EntryError as error:
        assert str(error).startswith("flow: add[")


# The TOML


def read(raw: dict[str, Any]) -> list[str]:
    """All problems of a table, as `nfcore check` tells them."""
    section, reader = Section(FlowActionsTable, check_table), Reader({})
    reader.table(section.model, raw, "flow_actions")
    assert section.check is not None
    return [str(problem) for problem in [*reader.problems, *section.check(raw, "flow_actions")]]


def test_the_tomls_problems_have_full_paths() -> None:
    flows = [
        GOOD,
        {**GOOD, "name": "a", "src": "198.18.1.1/8"},
        {**GOOD, "name": "b", "dport": 99_999},
        {**GOOD, "name": "c", "dport": 9, "proto": 6, "ttl": "1s"},
        {**GOOD, "name": "d", "sport": 9},
    ]
    assert read({"flows": flows, "pin_dir": "x", "entries": 0}) == [
        "flow_actions.entries: is 0; input should be greater than or equal to 1",
        "flow_actions.pin_dir: is 'x'; should be the absolute path of a folder, such as '/run/nfcore/bpf/flows', "
        "or empty",
        "flow_actions.flows[2].dport: is 99999; input should be less than or equal to 65535",
        "flow_actions.flows[3].ttl: unknown key; known here: action, burst, bytes_per_second, cpu, dport, dscp, dst, "
        "family, interface, name, offload, packets_per_second, priority, proto, require, sport, src",
        "flow_actions.flows[1].src: entry 'a': is '198.18.1.1/8', which has host bits; should be '198.0.0.0/8'",
        "flow_actions.flows[4].sport: entry 'd': is 9; a port needs proto, which should be 'tcp' or 'udp'",
    ]


def test_contradictions_in_the_toml() -> None:
    flows = [
        GOOD,
        {**GOOD, "name": "a"},
        {**GOOD, "name": "b", "src": None, "dst": "198.18.9.9"},
        {**GOOD, "src": "198.18.3.1"},
    ]
    assert read({"flows": flows[:2]}) == [
        "flow_actions.flows[1]: entry 'a': matches the same packets as entry 'x', flow_actions.flows[0]; "
        "one of them should go"
    ]
    assert read({"flows": [flows[0], flows[3]]}) == [
        "flow_actions.flows[1].name: entry 'x': is the name of flow_actions.flows[0], too; names should be different"
    ]
    assert "flow_actions.flows[1].priority: entry 'b': overlaps entry 'x'" in read({"flows": [flows[0], flows[2]]})[0]
    assert (
        "flow_actions.flows[1]: entry 'b': is one too many: 1 entries" in read({"flows": flows[:3:2], "entries": 1})[0]
    )
    assert read({"flows": 7})
    assert read({}) == []


def test_entries_that_come_in_parts_are_those_that_come_at_once() -> None:
    orders = [{**GOOD, "name": str(port), "proto": "tcp", "dport": port} for port in (80, 443)]
    joined, whole = Entries.join([parse_orders([each]) for each in orders]), parse_orders(orders)
    # Bytes, as they become keys of maps: by fields they may be equal in another byte order.
    assert joined.rows.tobytes() == whole.rows.tobytes()
    assert joined.rows.dtype == whole.rows.dtype
    assert joined.names == whole.names
