# SPDX-License-Identifier: Apache-2.0
"""Flower and its actions as pyroute2 attributes: what is encoded is read back, and it is what `tc` writes."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import tcmsg as tc_module
from pyroute2.netlink.rtnl.tcmsg import common_act

from nfcore.plugins.tc_offload.messages import tc_message
from nfcore.plugins.tc_offload.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWTFILTER
from nfcore.plugins.tc_offload.shapes import EGRESS, INGRESS, Place
from nfcore.plugins.tc_offload.tcmsg import cls_flower
from nfcore.plugins.tc_offload.tcmsg.act_pedit import ethernet_keys
from tests.paths import DATA

UAPI = Path("/usr/include/linux")
TC_MESSAGES = json.loads((DATA / "tc_messages.json").read_text())
DROP = {"kind": "gact", "action": "drop"}
MAC = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
PORT = st.integers(0, 0xFFFF)
MARK = st.integers(0, 2**32 - 1)
COOKIE = st.binary(min_size=1, max_size=16)

# What the commands of data/tc_messages.json say, in the words of get_parameters().
SAME_AS_TC: list[dict[str, Any]] = [
    {
        "protocol": cls_flower.ETH_P_IP,
        "skip_sw": True,
        "ip_proto": "tcp",
        "src_ip": "198.18.0.1",
        "dst_ip": "198.18.10.1",
        "src_port": 40000,
        "dst_port": 80,
        "action": {"kind": "skbedit", "mark": 7, "cookie": bytes.fromhex("0011223344556677")},
    },
    {
        "protocol": cls_flower.ETH_P_IP,
        "ip_proto": "udp",
        "src_ip": "198.18.0.0/15",
        "dst_ip": "198.18.10.0/24",
        "dst_port": 53,
        "ip_flags": "nofrag",
        "action": DROP,
    },
    {
        "protocol": cls_flower.ETH_P_IPV6,
        "skip_hw": True,
        "ip_proto": "tcp",
        "src_ip": "2001:db8::1",
        "dst_ip": "2001:db8:1::/48",
        "src_port": 1,
        "dst_port": 65535,
        "action": [{"kind": "skbedit", "queue": 3, "priority": 5}, {"kind": "gact", "action": "ok"}],
    },
    {
        "protocol": 0x8100,
        "vlan_id": 5,
        "vlan_prio": 2,
        "vlan_ethtype": "ipv4",
        "ip_proto": "udp",
        "action": [{"kind": "vlan", "v_action": "pop"}, {"kind": "skbedit", "mark": 2**24 - 1}],
    },
    {
        "protocol": cls_flower.ETH_P_8021AD,
        "vlan_id": 200,
        "vlan_ethtype": "802.1q",
        "cvlan_id": 7,
        "cvlan_prio": 3,
        "cvlan_ethtype": "ipv6",
        "ip_proto": "tcp",
        "action": {"kind": "gact", "action": "drop"},
    },
    {
        "protocol": cls_flower.ETH_P_IP,
        "indev": "a0",
        "src_mac": "02:00:00:00:00:01",
        "dst_mac": "02:00:00:00:00:02",
        "action": [
            {"kind": "pedit", "eth": {"dst": "02:00:00:00:00:07", "src": "02:00:00:00:00:08"}},
            {"kind": "gact", "action": "ok"},
        ],
    },
]


def encode(rule: dict[str, Any], prio: int = 6000, handle: int = 0, parent: int = INGRESS) -> bytes:
    info = cls_flower.filter_info(prio, rule["protocol"])
    attrs = [["TCA_KIND", "flower"], ["TCA_OPTIONS", cls_flower.get_parameters(rule)]]
    place = Place(1, parent, prio)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return bytes(tc_message(RTM_NEWTFILTER, flags, place, handle=handle, info=info, attrs=attrs).data)


def decode(raw: bytes) -> Any:
    message = cls_flower.FilterMessage(bytearray(raw))
    message.decode()
    return message


def facts(raw: bytes) -> set[tuple[str, str]]:
    """Every attribute of a message with its path and value; masks that say "all of it", the default, left out."""
    found: set[tuple[str, str]] = set()

    def walk(nla: Any, path: str) -> None:
        for slot in nla.get("attrs", ()):
            value = slot.value
            if isinstance(value, dict):
                fields = {key: inner for key, inner in value.items() if key not in ("attrs", "raw")}
                if fields:
                    found.add((path + slot.name, repr(sorted(fields.items()))))
                walk(value, f"{path}{slot.name}/")
            elif not (slot.name.endswith("_MASK") and _is_full(value)):
                found.add((path + slot.name, repr(value)))

    message = decode(raw)
    for field in ("handle", "parent", "info"):
        found.add((field, str(message[field])))
    walk(message, "")
    return found


def _is_full(mask: Any) -> bool:
    return mask in ("255.255.255.255", str(ipaddress.IPv6Address(2**128 - 1)), "ff:ff:ff:ff:ff:ff")


@pytest.mark.parametrize(("recorded", "rule"), list(zip(TC_MESSAGES, SAME_AS_TC, strict=True)))
def test_what_tc_writes_is_what_we_write(recorded: dict[str, str], rule: dict[str, Any]) -> None:
    theirs = bytes.fromhex(recorded["message"])
    header = decode(theirs)
    parent = EGRESS if " egress " in recorded["tc"] else INGRESS
    assert facts(encode(rule, header["info"] >> 16, header["handle"], parent)) == facts(theirs)


def test_attributes_have_the_numbers_of_the_kernel_header() -> None:
    text = (UAPI / "pkt_cls.h").read_text()
    body = text[text.index("TCA_FLOWER_UNSPEC,") : text.index("__TCA_FLOWER_MAX")]
    names = re.findall(r"^\s*(TCA_FLOWER_\w+),", body, re.MULTILINE)
    ours = [name for name, _ in cls_flower.Options.nla_map]
    assert len(names) > 80
    assert ours[: len(names)] == names


@pytest.mark.parametrize(
    ("kind", "header", "first"),
    [
        ("pedit", "tc_pedit.h", "TCA_PEDIT_UNSPEC"),
        ("skbedit", "tc_skbedit.h", "TCA_SKBEDIT_UNSPEC"),
        ("vlan", "tc_vlan.h", "TCA_VLAN_UNSPEC"),
        ("gact", "tc_gact.h", "TCA_GACT_UNSPEC"),
    ],
)
def test_attributes_of_actions_have_the_numbers_of_the_kernel_header(kind: str, header: str, first: str) -> None:
    text = (UAPI / "tc_act" / header).read_text()
    body = text[text.index(first) :]
    names = re.findall(r"^\s*(TCA_\w+),", body[: body.index("__TCA")], re.MULTILINE)
    ours = [name for name, *_ in common_act.plugins[kind].options.nla_map]
    assert ours == names[: len(ours)]


def test_pyroute2_knows_flower_and_pedit() -> None:
    assert tc_module.plugins["flower"].options is cls_flower.Options
    assert {"gact", "pedit", "skbedit", "vlan"} <= common_act.plugins.keys()


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
        lambda ip: st.tuples(st.just(ip), st.integers(0, ip.max_prefixlen))
    ),
    st.sampled_from(["tcp", "udp", "sctp"]),
    PORT,
    st.tuples(PORT, PORT),
    st.sampled_from(sorted(cls_flower.IP_FLAGS)),
    st.booleans(),
)
def test_matches_are_read_back(
    source: tuple[Any, int], protocol: str, sport: int, dport: tuple[int, int], frag: str, skip_sw: bool
) -> None:
    address, prefix = source
    rule = {
        "protocol": cls_flower.ETH_P_IP if address.version == 4 else cls_flower.ETH_P_IPV6,
        "ip_proto": protocol,
        "src_ip": f"{address}/{prefix}",
        "src_port": sport,
        "dst_port": dport,
        "ip_flags": frag,
        "skip_sw": skip_sw,
        "action": DROP,
    }
    options = decode(encode(rule)).get_attr("TCA_OPTIONS")
    key, upper = f"TCA_FLOWER_KEY_IPV{address.version}_SRC", protocol.upper()
    assert ipaddress.ip_address(options.get_attr(key)) == address
    mask = ipaddress.ip_interface(f"{address}/{prefix}").netmask
    full = type(address)(2**address.max_prefixlen - 1)
    assert ipaddress.ip_address(options.get_attr(f"{key}_MASK", str(full))) == mask
    assert options.get_attr(f"TCA_FLOWER_KEY_{upper}_SRC") == sport
    assert options.get_attr(f"TCA_FLOWER_KEY_{upper}_DST") == dport[0]
    assert options.get_attr(f"TCA_FLOWER_KEY_{upper}_DST_MASK") == dport[1]
    assert options.get_attr("TCA_FLOWER_KEY_FLAGS") == cls_flower.IP_FLAGS[frag][0]
    assert options.get_attr("TCA_FLOWER_KEY_FLAGS_MASK") == cls_flower.IP_FLAGS[frag][1]
    assert options.get_attr("TCA_FLOWER_FLAGS") == cls_flower.SKIP_SW * skip_sw


@given(MARK, MARK, PORT, PORT, COOKIE)
def test_skbedit_is_read_back(mark: int, mask: int, queue: int, queue_max: int, cookie: bytes) -> None:
    action = {"kind": "skbedit", "mark": mask & mark, "mask": mask, "queue": queue, "queue_max": queue_max}
    raw = encode({"protocol": cls_flower.ETH_P_IP, "action": {**action, "cookie": cookie, "ptype": "host"}})
    act = decode(raw).get_nested("TCA_OPTIONS", "TCA_FLOWER_ACT", "TCA_ACT_PRIO_1")
    options = act.get_attr("TCA_ACT_OPTIONS")
    assert act.get_attr("TCA_ACT_KIND") == "skbedit"
    assert act.get_attr("TCA_ACT_COOKIE") == cookie
    assert options.get_attr("TCA_SKBEDIT_MARK") == mask & mark
    assert options.get_attr("TCA_SKBEDIT_MASK") == mask
    assert options.get_attr("TCA_SKBEDIT_QUEUE_MAPPING") == queue
    assert options.get_attr("TCA_SKBEDIT_QUEUE_MAPPING_MAX") == queue_max
    assert options.get_attr("TCA_SKBEDIT_PTYPE") == 0


@given(
    st.sampled_from(["push", "modify"]),
    st.integers(0, 4095),
    st.integers(0, 7),
    st.sampled_from(["802.1Q", "802.1ad"]),
)
def test_vlan_is_read_back(word: str, number: int, priority: int, protocol: str) -> None:
    action = {"kind": "vlan", "v_action": word, "id": number, "priority": priority, "protocol": protocol}
    raw = encode({"protocol": cls_flower.ETH_P_IP, "action": action})
    options = decode(raw).get_nested("TCA_OPTIONS", "TCA_FLOWER_ACT", "TCA_ACT_PRIO_1", "TCA_ACT_OPTIONS")
    assert options.get_attr("TCA_VLAN_PARMS")["v_action"] == {"push": 2, "modify": 3}[word]
    assert options.get_attr("TCA_VLAN_PUSH_VLAN_ID") == number
    assert options.get_attr("TCA_VLAN_PUSH_VLAN_PRIORITY") == priority
    assert options.get_attr("TCA_VLAN_PUSH_VLAN_PROTOCOL") == {"802.1Q": 0x8100, "802.1ad": 0x88A8}[protocol]


@given(MAC, MAC, PORT, st.binary(min_size=16, max_size=16))
def test_pedit_keys_do_to_a_header_what_they_say(dst: str, src: str, kind: int, header: bytes) -> None:
    action = {"kind": "pedit", "eth": {"dst": dst, "src": src, "type": kind}}
    raw = encode({"protocol": cls_flower.ETH_P_IP, "action": action})
    options = decode(raw).get_nested("TCA_OPTIONS", "TCA_FLOWER_ACT", "TCA_ACT_PRIO_1", "TCA_ACT_OPTIONS")
    keys = options.get_attr("TCA_PEDIT_PARMS_EX")["keys"]
    extended = options.get_attr("TCA_PEDIT_KEYS_EX").get_attrs("TCA_PEDIT_KEY_EX")
    edited = bytearray(header)
    for key in keys:
        window = int.from_bytes(edited[key["off"] : key["off"] + 4], "little")
        edited[key["off"] : key["off"] + 4] = (window & key["mask"] ^ key["val"]).to_bytes(4, "little")
    wanted = bytes.fromhex(dst.replace(":", "")) + bytes.fromhex(src.replace(":", "")) + kind.to_bytes(2, "big")
    assert bytes(edited) == wanted + header[14:]
    assert [key.get_attr("TCA_PEDIT_KEY_EX_HTYPE") for key in extended] == [1] * len(keys)


def test_wrong_values_are_named() -> None:
    base = {"protocol": cls_flower.ETH_P_IP}
    with pytest.raises(ValueError, match=r"kind 'skbedti'; known are .*skbedit"):
        cls_flower.get_parameters({**base, "action": {"kind": "skbedti"}})
    with pytest.raises(ValueError, match="17 bytes; should be 1 to 16"):
        cls_flower.get_parameters({**base, "action": {**DROP, "cookie": bytes(17)}})
    with pytest.raises(ValueError, match="ip_proto is 'tpc'; should be a number or one of tcp"):
        cls_flower.get_parameters({**base, "ip_proto": "tpc"})
    with pytest.raises(ValueError, match="src_port needs ip_proto tcp, udp or sctp"):
        cls_flower.get_parameters({**base, "ip_proto": "icmp", "src_port": 1})
    with pytest.raises(ValueError, match="eth dst has 5 bytes; should be 6"):
        list(ethernet_keys("dst", bytes(5)))
