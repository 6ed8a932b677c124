# SPDX-License-Identifier: Apache-2.0
"""Our flower rules on the real classifier: what we write `tc` shows, what is there we find, whatever happens to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import RULE_ROW, Action, Drop, Outcome, Rule, RuleBatch, SetMark, make_cookies
from nfcore.errors import HostError
from nfcore.plugins.tc_offload.backend import Settings, TcBackend
from nfcore.plugins.tc_offload.messages import encode_dump, encode_rule, tc_message
from nfcore.plugins.tc_offload.netlink import RTM_NEWTFILTER, TcSocket
from nfcore.plugins.tc_offload.shapes import EGRESS, Place, Shape
from nfcore.plugins.tc_offload.tcmsg.cls_flower import FilterMessage, get_parameters

from .conftest import VethPair

Shell = Callable[..., str]
V4 = FlowMatch.parse("198.18.1.1:1111 > 198.18.1.2:53/udp")
V6 = FlowMatch.parse("[2001:db8::1]:1111 > [2001:db8::2]:443/tcp")


@pytest.fixture
def backend(veth_pair: VethPair) -> Iterator[TcBackend]:
    """A backend on the ingress of the pair's near end, in software."""
    opened = TcBackend(settings(veth_pair.near))
    opened.open()
    yield opened
    opened.close()


def settings(name: str, **others: Any) -> Settings:
    return Settings(name, socket.if_nametoindex(name), **{"skip_sw": "off", **others})


def many(count: int, first: int = 0, generation: int = 1) -> RuleBatch:
    """TCP rules for the mark 1."""
    rows = np.zeros(count, dtype=RULE_ROW)
    number = np.arange(first, first + count)
    rows["family"], rows["action"], rows["mark"] = 4, Action.SET_MARK, 1
    rows["key"]["src"][:, :2], rows["key"]["dst"][:, :4] = (198, 18), (198, 19, 10, 1)
    rows["key"]["src"][:, 2], rows["key"]["src"][:, 3] = number >> 8 & 0xFF, number & 0xFF
    rows["key"]["sport"], rows["key"]["dport"], rows["key"]["proto"] = 1024 + (number >> 16), 80, 6
    rows["cookie"] = make_cookies(number, np.full(count, generation, dtype=np.uint16))
    return RuleBatch(rows)


def shown(shell: Shell, name: str, hook: str = "ingress") -> list[dict[str, Any]]:
    """Filters with a handle as `tc -j` shows them. Its JSON of software filters is right for flower."""
    filters = json.loads(shell("tc", "-j", "-s", "filter", "show", "dev", name, hook))
    return [found for found in filters if "handle" in found.get("options", {})]


def same(left: NDArray[np.void], right: NDArray[np.void]) -> bool:
    """Whether two arrays of rules are the same set."""
    return sorted(map(bytes, left)) == sorted(map(bytes, right))


def send_udp(interface: str, count: int, size: int = 0) -> None:
    """Send the UDP datagrams of V4 onto the wire at ``interface``."""
    datagram = struct.pack("!HHHH", V4.sport, V4.dport, 8 + size, 0) + bytes(size)
    addresses = V4.src.packed + V4.dst.packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    header = header[:10] + struct.pack("!H", ~(total % 0xFFFF) & 0xFFFF) + header[12:]
    frame = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x08\x00" + header + datagram
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((interface, 0))
        for _ in range(count):
            wire.send(frame.ljust(60, b"\0"))


def test_tc_shows_what_we_install(shell: Shell, backend: TcBackend) -> None:
    rules = [Rule(V4, SetMark(0x00C0FFEE), 0x6E66_0001_0000_0001), Rule(V6, Drop(), 0x6E66_0001_0000_0002)]
    assert (backend.install(RuleBatch.of(rules)).status == Outcome.INSTALLED).all()
    four, six = shown(shell, "veth0")
    assert four["options"]["keys"] == {
        "eth_type": "ipv4",
        "ip_proto": "udp",
        "dst_ip": "198.18.1.2",
        "src_ip": "198.18.1.1",
        "dst_port": 53,
        "src_port": 1111,
    }
    assert (four["protocol"], four["pref"], four["options"]["handle"]) == ("ip", 6001, 1)
    assert four["options"]["actions"][0]["mark"] == 0x00C0FFEE
    assert four["options"]["actions"][0]["cookie"] == b"nfcoreTC".hex() + "010000000100666e"
    assert six["options"]["keys"]["src_ip"] == "2001:db8::1"
    assert six["options"]["keys"]["ip_proto"] == "tcp"
    assert (six["protocol"], six["pref"]) == ("ipv6", 6002)
    assert six["options"]["actions"][0]["control_action"]["type"] == "drop"
    assert list(RuleBatch(np.ascontiguousarray(backend.dump()["rule"]))) == rules


def test_we_read_what_tc_installs(shell: Shell, veth_pair: VethPair) -> None:
    shell("tc", "qdisc", "add", "dev", veth_pair.near, "clsact")
    match = "vlan_id 5 vlan_prio 2 vlan_ethtype ipv4 ip_proto udp src_ip 198.18.0.0/15 ip_flags nofrag"
    actions = (
        "action vlan modify id 6 priority 3 pipe action pedit ex munge eth dst set 02:00:00:00:00:07 pipe "
        "action skbedit mark 7 queue_mapping 3 pipe action pass cookie aabbcc"
    )
    tc = f"tc filter add dev {veth_pair.near} egress prio 9 protocol 802.1q flower {match} {actions}"
    shell(*tc.split())
    place = Place(socket.if_nametoindex(veth_pair.near), EGRESS, 9)
    message = _only_filter(place)
    options = message.get_attr("TCA_OPTIONS")
    expected = {
        "KEY_ETH_TYPE": 0x0800,  # the kernel tells what comes after the tag
        "KEY_VLAN_ID": 5,
        "KEY_VLAN_PRIO": 2,
        "KEY_VLAN_ETH_TYPE": 0x0800,
        "KEY_IP_PROTO": 17,
        "KEY_IPV4_SRC": "198.18.0.0",
        "KEY_IPV4_SRC_MASK": "255.254.0.0",
        "KEY_FLAGS": 0,
        "KEY_FLAGS_MASK": 1,
        "FLAGS": 8,
    }
    assert {key: options.get_attr(f"TCA_FLOWER_{key}") for key in expected} == expected
    acts = [slot.value for slot in options.get_attr("TCA_FLOWER_ACT")["attrs"]]
    vlan, pedit, skbedit, gact = (act.get_attr("TCA_ACT_OPTIONS") for act in acts)
    assert vlan.get_attr("TCA_VLAN_PARMS")["v_action"] == 3
    assert (vlan.get_attr("TCA_VLAN_PUSH_VLAN_ID"), vlan.get_attr("TCA_VLAN_PUSH_VLAN_PRIORITY")) == (6, 3)
    assert vlan.get_attr("TCA_VLAN_PUSH_VLAN_PROTOCOL") == 0x8100
    assert [key["off"] for key in pedit.get_attr("TCA_PEDIT_PARMS_EX")["keys"]] == [0, 4]
    assert (skbedit.get_attr("TCA_SKBEDIT_MARK"), skbedit.get_attr("TCA_SKBEDIT_QUEUE_MAPPING")) == (7, 3)
    assert gact.get_attr("TCA_GACT_PARMS")["action"] == 0
    assert gact.get_attr("TCA_GACT_TM")["firstuse"] == 0
    assert acts[3].get_attr("TCA_ACT_COOKIE") == b"\xaa\xbb\xcc"
    assert acts[3].get_attr("TCA_ACT_STATS").get_attr("TCA_STATS_BASIC_HW") == {"bytes": 0, "packets": 0}


def _only_filter(place: Place) -> Any:
    with_options = []
    messages = TcSocket()
    for run in messages.dump(encode_dump(place, 0, terse=False)):
        for raw in run.rows:
            message = FilterMessage(bytearray(raw.tobytes()))
            message.decode()
            if message["handle"]:
                with_options.append(message)
    messages.close()
    (only,) = with_options
    return only


def test_tc_shows_what_pyroute2s_classes_write(shell: Shell, veth_pair: VethPair) -> None:
    shell("tc", "qdisc", "add", "dev", veth_pair.near, "clsact")
    place = Place(socket.if_nametoindex(veth_pair.near), EGRESS, 5)
    rule = {
        "protocol": 0x8100,
        "vlan_id": 5,
        "vlan_prio": 2,
        "vlan_ethtype": "ipv4",
        "ip_proto": "udp",
        "src_ip": "198.18.0.0/15",
        "dst_port": 53,
        "ip_flags": "nofrag",
        "indev": veth_pair.near,
        "action": [
            {"kind": "vlan", "v_action": "pop"},
            {"kind": "pedit", "eth": {"dst": "02:00:00:00:00:07"}},
            {"kind": "skbedit", "mark": 7, "queue": 3},
            {"kind": "gact", "action": "drop", "cookie": b"\xaa\xbb"},
        ],
    }
    info = 0x81 | 5 << 16
    attrs = [["TCA_KIND", "flower"], ["TCA_OPTIONS", get_parameters(rule)]]
    messages = TcSocket()
    messages.request(bytes(tc_message(RTM_NEWTFILTER, 0x600, place, info=info, handle=9, attrs=attrs).data))
    messages.close()
    text = shell("tc", "-s", "filter", "show", "dev", veth_pair.near, "egress")
    for words in (
        "filter protocol 802.1Q pref 5 flower chain 0 handle 0x9",
        "indev veth0",
        "vlan_id 5",
        "vlan_prio 2",
        "vlan_ethtype ip",
        "ip_proto udp",
        "src_ip 198.18.0.0/15",
        "dst_port 53",
        "ip_flags nofrag",
        "not_in_hw",
        "action order 1: vlan  pop pipe",
        "key #0  at eth+0: val 02000000 mask 00000000",
        "key #1  at eth+4: val 00070000 mask 0000ffff",
        "action order 3: skbedit queue_mapping 3 mark 7 pipe",
        "action order 4: gact action drop",
        "cookie aabb",
    ):
        assert words in re.sub(r" +", " ", text) or words in text, words


@pytest.mark.parametrize("terse", [False, True])
def test_counters_come_back(veth_pair: VethPair, terse: bool) -> None:
    backend = TcBackend(settings(veth_pair.near, terse=terse))
    backend.open()
    rules = RuleBatch.of([Rule(V4, SetMark(5), 77), Rule(V6, SetMark(6), 78)])
    backend.install(rules)
    send_udp(veth_pair.far, 4, size=100)
    rows = backend.dump()
    backend.close()
    by_cookie = {int(row["rule"]["cookie"]): row for row in rows}
    assert same(np.ascontiguousarray(rows["rule"]), rules.rows)
    assert (by_cookie[77]["packets"], by_cookie[77]["bytes"]) == (4, 4 * (20 + 8 + 100))
    assert (by_cookie[78]["packets"], by_cookie[78]["bytes"], by_cookie[78]["last_used"]) == (0, 0, 0)
    if terse:
        assert by_cookie[77]["last_used"] == 0
    else:
        assert 0 <= time.monotonic_ns() - int(by_cookie[77]["last_used"]) < 60e9


def test_a_drop_rule_drops_and_counts(shell: Shell, veth_pair: VethPair, backend: TcBackend) -> None:
    tc = ["tc", "filter", "add", "dev", veth_pair.near, "ingress", "prio", "7000", "protocol", "ip"]
    shell(*tc, "flower", "action", "pass")
    backend.install(RuleBatch.of([Rule(V4, Drop(), 77)]))
    send_udp(veth_pair.far, 3)
    backend.remove(RuleBatch.of([Rule(V4, Drop(), 77)]))
    send_udp(veth_pair.far, 2)
    backend.install(RuleBatch.of([Rule(V4, Drop(), 77)]))
    assert backend.dump()["packets"].tolist() == [0]
    behind = next(found for found in shown(shell, veth_pair.near) if found["pref"] == 7000)
    assert behind["options"]["actions"][0]["stats"]["packets"] == 2


def test_a_replacement_by_itself_keeps_its_counters(veth_pair: VethPair, backend: TcBackend) -> None:
    backend.install(RuleBatch.of([Rule(V4, SetMark(1), 77)]))
    send_udp(veth_pair.far, 3)
    for mark in (2, 3):
        assert backend.install(RuleBatch.of([Rule(V4, SetMark(mark), 77)])).status.tolist() == [Outcome.INSTALLED]
        send_udp(veth_pair.far, 1)
    (row,) = backend.dump()
    assert (row["rule"]["mark"], row["packets"]) == (3, 5)
    backend.install(RuleBatch.of([Rule(V4, SetMark(3), 78)]))
    (row,) = backend.dump()
    assert (row["rule"]["cookie"], row["packets"]) == (78, 0)


def test_the_last_of_two_rules_for_one_flow_stands(backend: TcBackend) -> None:
    rules = RuleBatch.of([Rule(V4, SetMark(1), 77), Rule(V6, Drop(), 79), Rule(V4, SetMark(2), 78)])
    assert (backend.install(rules).status == Outcome.INSTALLED).all()
    assert same(np.ascontiguousarray(backend.dump()["rule"]), rules.rows[1:])


def test_another_rules_cookie_removes_nothing(backend: TcBackend) -> None:
    backend.install(RuleBatch.of([Rule(V4, SetMark(1), 78)]))
    wrong = RuleBatch.of([Rule(V4, SetMark(1), 77), Rule(V6, SetMark(1), 78)])
    assert backend.remove(wrong).status.tolist() == [Outcome.ABSENT, Outcome.ABSENT]
    right = RuleBatch.of([Rule(V4, SetMark(1), 78)])
    assert backend.remove(right).status.tolist() == [Outcome.REMOVED]
    assert backend.remove(right).status.tolist() == [Outcome.ABSENT]
    assert len(backend.dump()) == 0


def test_what_is_there_already_is_found_and_taken_over(shell: Shell, veth_pair: VethPair) -> None:
    first = TcBackend(settings(veth_pair.near))
    first.open()
    first.install(many(500))
    first.close(remove=False)
    second = TcBackend(settings(veth_pair.near))
    second.open()
    assert second.held == 500
    assert (second.install(many(10, first=495, generation=2)).status == Outcome.INSTALLED).all()
    assert len(second.dump()) == 505
    assert (second.remove(many(495)).status == Outcome.REMOVED).all()
    assert len(shown(shell, veth_pair.near)) == 10
    second.close()
    assert "clsact" in shell("tc", "qdisc", "show", "dev", veth_pair.near)


def test_rules_that_somebody_removes_are_missed(shell: Shell, veth_pair: VethPair, backend: TcBackend) -> None:
    rules = many(20)
    backend.install(rules)
    for handle in ("1", "7"):
        shell("tc", "filter", "del", "dev", veth_pair.near, "ingress", "prio", "6000", "handle", handle,
              "protocol", "ip", "flower")  # fmt: skip
    outcomes = backend.remove(RuleBatch(rules.rows[:2]))
    assert outcomes.status.tolist() == [Outcome.ABSENT, Outcome.REMOVED]
    assert len(backend.dump()) == 17
    shell("tc", "filter", "del", "dev", veth_pair.near, "ingress")
    assert len(backend.dump()) == backend.held == 0
    assert (backend.install(rules).status == Outcome.INSTALLED).all()
    assert len(backend.dump()) == 20


def test_a_qdisc_that_somebody_removes_is_made_again(shell: Shell, veth_pair: VethPair, backend: TcBackend) -> None:
    rules = RuleBatch.of([Rule(V4, SetMark(1), 1), Rule(V6, SetMark(1), 2), Rule(V6, Drop(), 3)])
    backend.install(rules)
    shell("tc", "qdisc", "del", "dev", veth_pair.near, "clsact")
    assert (backend.install(rules).status == Outcome.INSTALLED).all()
    assert same(np.ascontiguousarray(backend.dump()["rule"]), rules.rows[[0, 2]])
    shell("tc", "qdisc", "del", "dev", veth_pair.near, "clsact")
    assert not len(backend.dump())
    assert (backend.remove(rules).status == Outcome.ABSENT).all()


def test_an_ingress_qdisc_in_the_way_is_used_and_left(shell: Shell, veth_pair: VethPair) -> None:
    shell("tc", "qdisc", "add", "dev", veth_pair.near, "ingress")
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    assert backend.install(many(3)).status.tolist() == [Outcome.INSTALLED] * 3
    backend.close()
    assert len(shown(shell, veth_pair.near)) == 3
    with pytest.raises(HostError, match=r"need the qdisc clsact, but 'ingress' is in its place; remove it: tc qdisc"):
        TcBackend(settings(veth_pair.near, direction="egress")).open()


def test_a_shared_block_in_the_way_is_said_once(shell: Shell, veth_pair: VethPair) -> None:
    shell("tc", "qdisc", "add", "dev", veth_pair.near, "ingress_block", "22", "clsact")
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    outcomes = backend.install(many(2))
    assert outcomes.status.tolist() == [Outcome.FAILED] * 2
    assert "another program's shared block is in the way" in outcomes.messages[0]
    assert not backend.install(many(2)).messages
    assert backend.capabilities().temporary
    shell("tc", "qdisc", "del", "dev", veth_pair.near, "clsact")
    backend.reprobe()
    assert not backend.capabilities().temporary
    assert backend.install(many(2)).status.tolist() == [Outcome.INSTALLED] * 2
    backend.close()


def test_the_qdisc_goes_with_the_last_rule_and_never_from_under_others(shell: Shell, veth_pair: VethPair) -> None:
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    assert backend.close()
    assert "clsact" not in shell("tc", "qdisc", "show", "dev", veth_pair.near)
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    shell("tc", "filter", "add", "dev", veth_pair.near, "egress", "protocol", "ip", "flower", "action", "pass")
    assert not backend.close()
    assert len(shown(shell, veth_pair.near, "egress")) == 1


def test_egress_of_the_peer_marks_what_the_device_receives(shell: Shell, veth_pair: VethPair) -> None:
    backend = TcBackend(settings(veth_pair.far, direction="egress"))
    backend.open()
    assert backend.place.parent == EGRESS
    shell("tc", "qdisc", "add", "dev", veth_pair.near, "clsact")
    shell("tc", "filter", "add", "dev", veth_pair.near, "ingress", "prio", "2", "protocol", "all", "handle", "9",
          "fw", "action", "pass")  # fmt: skip
    backend.install(RuleBatch.of([Rule(V4, SetMark(9), 77)]))
    send_udp(veth_pair.far, 6)
    assert backend.dump()["packets"].tolist() == [6]
    listing = shell("tc", "-s", "filter", "show", "dev", veth_pair.near, "ingress")
    assert re.findall(r"Sent \d+ bytes (\d+) pkt", listing) == ["6"]
    backend.close()


def test_a_device_without_offload_says_so_once_and_keeps_no_rule(shell: Shell, veth_pair: VethPair) -> None:
    backend = TcBackend(settings(veth_pair.near, skip_sw="auto"))
    backend.open()
    capabilities = backend.capabilities()
    assert (capabilities.mark_width, capabilities.ipv6, capabilities.drop) == (0, False, False)
    assert "hw-tc-offload" in capabilities.notes[0]
    outcomes = backend.install(many(5))
    assert outcomes.status.tolist() == [Outcome.UNSUPPORTED] * 5
    assert list(outcomes.messages.values()) == list(capabilities.notes)
    assert not backend.install(many(5)).messages
    assert not shown(shell, veth_pair.near)
    assert "clsact" not in shell("tc", "qdisc", "show", "dev", veth_pair.near)
    backend.close()


def test_what_software_can_do_is_found_by_trying(shell: Shell, backend: TcBackend) -> None:
    capabilities = backend.capabilities()
    assert (capabilities.mark_width, capabilities.ipv6, capabilities.drop) == (32, True, True)
    assert capabilities.masks
    assert capabilities.notes == ("rules in software",)
    assert not shown(shell, "veth0")


def test_a_priority_of_somebody_else_is_a_failure_with_words(shell: Shell, veth_pair: VethPair) -> None:
    shell("tc", "qdisc", "add", "dev", veth_pair.near, "clsact")
    shell("tc", "filter", "add", "dev", veth_pair.near, "ingress", "prio", "6000", "protocol", "arp", "flower",
          "action", "pass")  # fmt: skip
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    outcomes = backend.install(RuleBatch.of([Rule(V4, SetMark(1), 1), *many(2)]))
    assert outcomes.status.tolist() == [Outcome.INSTALLED, Outcome.FAILED, Outcome.FAILED]
    assert "protocol" in outcomes.messages[1].lower()
    shell("tc", "filter", "del", "dev", veth_pair.near, "ingress", "prio", "6000")
    assert (backend.install(many(2)).status == Outcome.INSTALLED).all()
    backend.close()


def test_a_rule_of_somebody_else_for_the_same_flow_is_left(shell: Shell, veth_pair: VethPair) -> None:
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    shell("tc", "filter", "add", "dev", veth_pair.near, "ingress", "prio", "6001", "handle", "1", "protocol", "ip",
          "flower", "ip_proto", "udp", "src_ip", str(V4.src), "dst_ip", str(V4.dst), "src_port", str(V4.sport),
          "dst_port", str(V4.dport), "action", "pass")  # fmt: skip
    outcomes = backend.install(RuleBatch.of([Rule(V4, SetMark(1), 1), Rule(V6, SetMark(1), 2)]))
    assert outcomes.status.tolist() == [Outcome.FAILED, Outcome.INSTALLED]
    assert "EEXIST" in outcomes.messages[0]
    assert len(backend.dump()) == 1
    assert len(shown(shell, veth_pair.near)) == 2
    backend.close()


def test_lost_answers_are_settled_by_a_look(veth_pair: VethPair) -> None:
    # So small a buffer holds two answers: those of a batch of refusals do not fit.
    backend = TcBackend(settings(veth_pair.near), TcSocket(buffer=2304, send_bytes=200 * 100))
    backend.open()
    keeper = TcBackend(settings(veth_pair.near))
    keeper.open()
    keeper.install(many(300))
    keeper.close(remove=False)
    # It does not know of the other's rules, so that every message is refused, and most refusals are lost.
    outcomes = backend.install(many(400))
    assert backend.counts["unheard"] > 0
    assert (outcomes.status == Outcome.INSTALLED).all()
    assert same(np.ascontiguousarray(backend.dump()["rule"]), many(400).rows)
    outsider = TcBackend(settings(veth_pair.near))
    outsider.sweep()
    outsider.close()
    assert (backend.remove(many(400)).status != Outcome.FAILED).all()
    assert len(backend.dump()) == 0
    backend.close()


def test_a_device_that_goes_takes_its_rules_along(shell: Shell) -> None:
    shell("ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1")
    backend = TcBackend(settings("gone0"))
    backend.open()
    backend.install(many(10))
    shell("ip", "link", "del", "gone0")
    outcomes = backend.install(many(10, first=10))
    assert outcomes.status.tolist() == [Outcome.FAILED] * 10
    assert len(outcomes.messages) == 1
    assert "No such device" in outcomes.messages[0]
    assert (backend.remove(many(10)).status != Outcome.FAILED).all()
    assert len(backend.dump()) == backend.held == 0
    assert not backend.close()


def test_a_device_that_goes_in_the_middle_of_a_batch_fails_the_rest(shell: Shell) -> None:
    shell("ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1")
    backend = TcBackend(settings("gone0"))
    backend.open()
    batch = many(60_000)  # seconds of work, here
    deleter = subprocess.Popen(["sh", "-c", "sleep 0.5; ip link del gone0"])
    outcomes = backend.install(batch)
    assert deleter.wait() == 0
    failed = outcomes.status == Outcome.FAILED
    assert failed[-1]
    assert outcomes.messages
    assert len(backend.dump()) == 0
    assert (backend.remove(batch).status != Outcome.REMOVED).all()
    backend.close()


def test_without_the_right_to_nothing_is_touched(veth_pair: VethPair) -> None:
    code = (
        "import os, socket, sys; os.setresuid(65534, 65534, 65534)\n"
        "from nfcore.plugins.tc_offload.backend import Settings, TcBackend\n"
        f"TcBackend(Settings({veth_pair.near!r}, socket.if_nametoindex({veth_pair.near!r}))).open()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "veth0: qdisc clsact cannot be added: " in done.stderr
    assert "Operation not permitted (EPERM): needs root, or CAP_NET_ADMIN" in done.stderr
    assert "use sudo" in done.stderr


def test_killed_in_mid_batch_and_started_again_has_the_exact_state(shell: Shell, veth_pair: VethPair) -> None:
    child = os.fork()
    if child == 0:
        backend = TcBackend(settings(veth_pair.near), TcSocket(send_bytes=200 * 50))
        backend.open()
        backend.install(many(10_000))
        signal.pause()
    while len(shell("tc", "qdisc", "show", "dev", veth_pair.near).split("clsact")) == 1 or not _some_rules(veth_pair):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    left = backend.dump()
    assert 0 < len(left) <= 10_000
    # What is there is the beginning of the batch, rule by rule.
    assert same(np.ascontiguousarray(left["rule"]), many(len(left)).rows)
    assert (backend.install(many(10_000, generation=2)).status == Outcome.INSTALLED).all()
    assert same(np.ascontiguousarray(backend.dump()["rule"]), many(10_000, generation=2).rows)
    assert backend.sweep() == 10_000
    assert not shown(shell, veth_pair.near)
    backend.close()


def _some_rules(pair: VethPair) -> bool:
    place = settings(pair.near).place()
    messages = TcSocket()
    count = sum(len(run.rows) for run in messages.dump(encode_dump(place, place.info(Shape.TCP4), terse=True)))
    messages.close()
    return count > 100


def test_large_numbers_keep_every_rule_apart(veth_pair: VethPair) -> None:
    backend = TcBackend(settings(veth_pair.near))
    backend.open()
    rules = many(5000)
    rules.rows["key"]["proto"][::2] = 17
    rules.rows["action"][::3], rules.rows["mark"][::3] = Action.DROP, 0
    rules.rows["mark"][rules.rows["action"] == Action.SET_MARK] = np.arange(1, 1 + (len(rules) * 2) // 3)
    assert (backend.install(rules).status == Outcome.INSTALLED).all()
    assert same(np.ascontiguousarray(backend.dump()["rule"]), rules.rows)
    assert (backend.remove(RuleBatch(rules.rows[::2].copy())).status == Outcome.REMOVED).all()
    assert same(np.ascontiguousarray(backend.dump()["rule"]), rules.rows[1::2])
    backend.close()


def test_pyroute2s_own_socket_takes_flower(shell: Shell, veth_pair: VethPair) -> None:
    code = (
        "from pyroute2 import IPRoute\n"
        "from nfcore.plugins.tc_offload.tcmsg.cls_flower import register\n"
        "register()\n"
        "with IPRoute() as ip:\n"
        f"    index = ip.link_lookup(ifname={veth_pair.near!r})[0]\n"
        "    ip.tc('add', 'clsact', index)\n"
        "    ip.tc('add-filter', 'flower', index, ':7', parent='ffff:fff2', prio=10, protocol=0x0800,\n"
        "          ip_proto='tcp', src_ip='198.18.0.1', dst_ip='198.18.10.0/24', dst_port=80,\n"
        "          action={'kind': 'skbedit', 'mark': 7, 'cookie': b'seven'})\n"
        "    found = [m for m in ip.get_filters(index=index, parent=0xfffffff2) if m['handle']]\n"
        "    print(found[0].get_nested('TCA_OPTIONS', 'TCA_FLOWER_ACT', 'TCA_ACT_PRIO_1', 'TCA_ACT_COOKIE'))\n"
    )
    assert shell(sys.executable, "-c", code).strip() == str(b"seven")
    (filter_,) = shown(shell, veth_pair.near)
    assert filter_["options"]["keys"]["dst_ip"] == "198.18.10.0/24"
    assert filter_["options"]["actions"][0]["mark"] == 7


def test_encoded_rules_are_what_the_kernel_gives_back(veth_pair: VethPair, backend: TcBackend) -> None:
    message = encode_rule(backend.place, Shape.UDP6, {"src_ip": "2001:db8::/32", "action": {"kind": "gact"}}, 5)
    messages = TcSocket()
    messages.request(bytes(message.data))
    messages.close()
    found = _only_filter(backend.place).get_attr("TCA_OPTIONS")
    assert found.get_attr("TCA_FLOWER_KEY_IPV6_SRC_MASK") == "ffff:ffff::"
    assert found.get_attr("TCA_FLOWER_KEY_IP_PROTO") == socket.IPPROTO_UDP
    assert len(backend.dump()) == 0
