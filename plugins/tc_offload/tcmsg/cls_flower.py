# SPDX-License-Identifier: Apache-2.0
# mypy: disallow-subclassing-any=False
"""The flower classifier as a plugin of pyroute2, with every attribute of `pkt_cls.h` by name.

    from pyroute2 import IPRoute
    register()
    with IPRoute() as ip:
        ip.tc("add-filter", "flower", ifindex, ":1", parent="ffff:fff2", prio=10, protocol=ETH_P_IP,
              ip_proto="tcp", src_ip="198.18.0.1", dst_ip="198.18.10.0/24", dst_port=80, skip_sw=True,
              action={"kind": "skbedit", "mark": 7, "cookie": b"seven"})

Keys of :func:`get_parameters`, named as in `tc`: indev; ip_proto; src_ip, dst_ip (optionally with a prefix length);
src_port, dst_port (a number, or number and mask); ip_flags (`nofrag`, `frag`, `firstfrag`, `nofirstfrag`);
src_mac, dst_mac; vlan_id, vlan_prio, vlan_ethtype; of a second tag cvlan_id, cvlan_prio, cvlan_ethtype; eth_type;
classid; skip_sw, skip_hw; action, one mapping or several.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from pyroute2.netlink import nla, nlmsg
from pyroute2.netlink.rtnl import tcmsg as tc_module
from pyroute2.netlink.rtnl.tcmsg import common_act, tcmsg

from . import act_gact, act_pedit, act_skbedit, act_vlan
from .actions import ActionChain, Bitfield32, encode_actions

ETH_P_IP, ETH_P_IPV6, ETH_P_ALL = 0x0800, 0x86DD, 0x0003
ETH_P_8021Q, ETH_P_8021AD = 0x8100, 0x88A8
SKIP_HW, SKIP_SW, IN_HW, NOT_IN_HW = 1, 2, 4, 8
"""Bits of TCA_FLOWER_FLAGS, TCA_CLS_FLAGS_*: user space sets the first two, the kernel returns the others."""
IP_FLAGS = {"nofrag": (0, 1), "frag": (1, 1), "nofirstfrag": (0, 2), "firstfrag": (2, 2)}
"""Name → TCA_FLOWER_KEY_FLAGS and its mask. Bit 0: is a fragment; bit 1: is the first one."""
PORT_KEYS = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP", socket.IPPROTO_SCTP: "SCTP"}
_PROTOCOLS = {
    "tcp": socket.IPPROTO_TCP,
    "udp": socket.IPPROTO_UDP,
    "sctp": socket.IPPROTO_SCTP,
    "icmp": socket.IPPROTO_ICMP,
    "icmpv6": socket.IPPROTO_ICMPV6,
}
_NEXT_TYPES = {
    "ipv4": ETH_P_IP,
    "ip": ETH_P_IP,
    "ipv6": ETH_P_IPV6,
    "802.1q": ETH_P_8021Q,
    "802.1ad": ETH_P_8021AD,
}
Attrs = Iterator[tuple[str, Any]]


class Options(nla):
    """`TCA_OPTIONS` of kind flower."""

    nla_map = (
        ("TCA_FLOWER_UNSPEC", "none"),
        ("TCA_FLOWER_CLASSID", "uint32"),
        ("TCA_FLOWER_INDEV", "asciiz"),
        ("TCA_FLOWER_ACT", "act"),
        ("TCA_FLOWER_KEY_ETH_DST", "l2addr"),
        ("TCA_FLOWER_KEY_ETH_DST_MASK", "l2addr"),
        ("TCA_FLOWER_KEY_ETH_SRC", "l2addr"),
        ("TCA_FLOWER_KEY_ETH_SRC_MASK", "l2addr"),
        ("TCA_FLOWER_KEY_ETH_TYPE", "be16"),
        ("TCA_FLOWER_KEY_IP_PROTO", "uint8"),
        ("TCA_FLOWER_KEY_IPV4_SRC", "ip4addr"),
        ("TCA_FLOWER_KEY_IPV4_SRC_MASK", "ip4addr"),
        ("TCA_FLOWER_KEY_IPV4_DST", "ip4addr"),
        ("TCA_FLOWER_KEY_IPV4_DST_MASK", "ip4addr"),
        ("TCA_FLOWER_KEY_IPV6_SRC", "ip6addr"),
        ("TCA_FLOWER_KEY_IPV6_SRC_MASK", "ip6addr"),
        ("TCA_FLOWER_KEY_IPV6_DST", "ip6addr"),
        ("TCA_FLOWER_KEY_IPV6_DST_MASK", "ip6addr"),
        ("TCA_FLOWER_KEY_TCP_SRC", "be16"),
        ("TCA_FLOWER_KEY_TCP_DST", "be16"),
        ("TCA_FLOWER_KEY_UDP_SRC", "be16"),
        ("TCA_FLOWER_KEY_UDP_DST", "be16"),
        ("TCA_FLOWER_FLAGS", "uint32"),
        ("TCA_FLOWER_KEY_VLAN_ID", "uint16"),
        ("TCA_FLOWER_KEY_VLAN_PRIO", "uint8"),
        ("TCA_FLOWER_KEY_VLAN_ETH_TYPE", "be16"),
        ("TCA_FLOWER_KEY_ENC_KEY_ID", "be32"),
        ("TCA_FLOWER_KEY_ENC_IPV4_SRC", "ip4addr"),
        ("TCA_FLOWER_KEY_ENC_IPV4_SRC_MASK", "ip4addr"),
        ("TCA_FLOWER_KEY_ENC_IPV4_DST", "ip4addr"),
        ("TCA_FLOWER_KEY_ENC_IPV4_DST_MASK", "ip4addr"),
        ("TCA_FLOWER_KEY_ENC_IPV6_SRC", "ip6addr"),
        ("TCA_FLOWER_KEY_ENC_IPV6_SRC_MASK", "ip6addr"),
        ("TCA_FLOWER_KEY_ENC_IPV6_DST", "ip6addr"),
        ("TCA_FLOWER_KEY_ENC_IPV6_DST_MASK", "ip6addr"),
        ("TCA_FLOWER_KEY_TCP_SRC_MASK", "be16"),
        ("TCA_FLOWER_KEY_TCP_DST_MASK", "be16"),
        ("TCA_FLOWER_KEY_UDP_SRC_MASK", "be16"),
        ("TCA_FLOWER_KEY_UDP_DST_MASK", "be16"),
        ("TCA_FLOWER_KEY_SCTP_SRC_MASK", "be16"),
        ("TCA_FLOWER_KEY_SCTP_DST_MASK", "be16"),
        ("TCA_FLOWER_KEY_SCTP_SRC", "be16"),
        ("TCA_FLOWER_KEY_SCTP_DST", "be16"),
        ("TCA_FLOWER_KEY_ENC_UDP_SRC_PORT", "be16"),
        ("TCA_FLOWER_KEY_ENC_UDP_SRC_PORT_MASK", "be16"),
        ("TCA_FLOWER_KEY_ENC_UDP_DST_PORT", "be16"),
        ("TCA_FLOWER_KEY_ENC_UDP_DST_PORT_MASK", "be16"),
        ("TCA_FLOWER_KEY_FLAGS", "be32"),
        ("TCA_FLOWER_KEY_FLAGS_MASK", "be32"),
        ("TCA_FLOWER_KEY_ICMPV4_CODE", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV4_CODE_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV4_TYPE", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV4_TYPE_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV6_CODE", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV6_CODE_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV6_TYPE", "uint8"),
        ("TCA_FLOWER_KEY_ICMPV6_TYPE_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ARP_SIP", "ip4addr"),
        ("TCA_FLOWER_KEY_ARP_SIP_MASK", "ip4addr"),
        ("TCA_FLOWER_KEY_ARP_TIP", "ip4addr"),
        ("TCA_FLOWER_KEY_ARP_TIP_MASK", "ip4addr"),
        ("TCA_FLOWER_KEY_ARP_OP", "uint8"),
        ("TCA_FLOWER_KEY_ARP_OP_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ARP_SHA", "l2addr"),
        ("TCA_FLOWER_KEY_ARP_SHA_MASK", "l2addr"),
        ("TCA_FLOWER_KEY_ARP_THA", "l2addr"),
        ("TCA_FLOWER_KEY_ARP_THA_MASK", "l2addr"),
        ("TCA_FLOWER_KEY_MPLS_TTL", "uint8"),
        ("TCA_FLOWER_KEY_MPLS_BOS", "uint8"),
        ("TCA_FLOWER_KEY_MPLS_TC", "uint8"),
        ("TCA_FLOWER_KEY_MPLS_LABEL", "uint32"),
        ("TCA_FLOWER_KEY_TCP_FLAGS", "be16"),
        ("TCA_FLOWER_KEY_TCP_FLAGS_MASK", "be16"),
        ("TCA_FLOWER_KEY_IP_TOS", "uint8"),
        ("TCA_FLOWER_KEY_IP_TOS_MASK", "uint8"),
        ("TCA_FLOWER_KEY_IP_TTL", "uint8"),
        ("TCA_FLOWER_KEY_IP_TTL_MASK", "uint8"),
        ("TCA_FLOWER_KEY_CVLAN_ID", "uint16"),
        ("TCA_FLOWER_KEY_CVLAN_PRIO", "uint8"),
        ("TCA_FLOWER_KEY_CVLAN_ETH_TYPE", "be16"),
        ("TCA_FLOWER_KEY_ENC_IP_TOS", "uint8"),
        ("TCA_FLOWER_KEY_ENC_IP_TOS_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ENC_IP_TTL", "uint8"),
        ("TCA_FLOWER_KEY_ENC_IP_TTL_MASK", "uint8"),
        ("TCA_FLOWER_KEY_ENC_OPTS", "hex"),
        ("TCA_FLOWER_KEY_ENC_OPTS_MASK", "hex"),
        ("TCA_FLOWER_IN_HW_COUNT", "uint32"),
        ("TCA_FLOWER_KEY_PORT_SRC_MIN", "be16"),
        ("TCA_FLOWER_KEY_PORT_SRC_MAX", "be16"),
        ("TCA_FLOWER_KEY_PORT_DST_MIN", "be16"),
        ("TCA_FLOWER_KEY_PORT_DST_MAX", "be16"),
        ("TCA_FLOWER_KEY_CT_STATE", "uint16"),
        ("TCA_FLOWER_KEY_CT_STATE_MASK", "uint16"),
        ("TCA_FLOWER_KEY_CT_ZONE", "uint16"),
        ("TCA_FLOWER_KEY_CT_ZONE_MASK", "uint16"),
        ("TCA_FLOWER_KEY_CT_MARK", "uint32"),
        ("TCA_FLOWER_KEY_CT_MARK_MASK", "uint32"),
        ("TCA_FLOWER_KEY_CT_LABELS", "hex"),
        ("TCA_FLOWER_KEY_CT_LABELS_MASK", "hex"),
        ("TCA_FLOWER_KEY_MPLS_OPTS", "hex"),
        ("TCA_FLOWER_KEY_HASH", "uint32"),
        ("TCA_FLOWER_KEY_HASH_MASK", "uint32"),
        ("TCA_FLOWER_KEY_NUM_OF_VLANS", "uint8"),
        ("TCA_FLOWER_KEY_PPPOE_SID", "be16"),
        ("TCA_FLOWER_KEY_PPP_PROTO", "be16"),
        ("TCA_FLOWER_KEY_L2TPV3_SID", "be32"),
        ("TCA_FLOWER_L2_MISS", "uint8"),
        ("TCA_FLOWER_KEY_CFM", "hex"),
        ("TCA_FLOWER_KEY_SPI", "be32"),
        ("TCA_FLOWER_KEY_SPI_MASK", "be32"),
        ("TCA_FLOWER_KEY_ENC_FLAGS", "be32"),
        ("TCA_FLOWER_KEY_ENC_FLAGS_MASK", "be32"),
    )
    act = ActionChain


options = Options


class FilterMessage(nlmsg):
    """`struct tcmsg` with all attributes of a filter; pyroute2's own lacks those from TCA_PAD on."""

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = (
        *tcmsg.nla_map,
        ("TCA_PAD", "none"),
        ("TCA_DUMP_INVISIBLE", "flag"),
        ("TCA_CHAIN", "uint32"),
        ("TCA_HW_OFFLOAD", "uint8"),
        ("TCA_INGRESS_BLOCK", "uint32"),
        ("TCA_EGRESS_BLOCK", "uint32"),
        ("TCA_DUMP_FLAGS", "bitfield"),
    )
    stats = tcmsg.stats
    bitfield = Bitfield32
    get_plugin = tcmsg.get_plugin
    get_options = staticmethod(tcmsg.get_options)
    get_xstats = staticmethod(tcmsg.get_xstats)
    get_stats2 = staticmethod(tcmsg.get_stats2)


def register() -> None:
    """Add the classifier and the actions to pyroute2's tables of plugins."""
    tc_module.plugins["flower"] = _this_module()
    for kind, module in {"gact": act_gact, "pedit": act_pedit, "skbedit": act_skbedit, "vlan": act_vlan}.items():
        common_act.plugins[kind] = module


def _this_module() -> Any:
    import sys  # noqa: PLC0415 - the table holds modules, and this is how a module refers to itself

    return sys.modules[__name__]


def fix_request(request: dict[str, Any]) -> None:
    """Write prio and protocol into `tcm_info`; pyroute2 calls this."""
    request.pop("rate", None)
    request["info"] = filter_info(request.get("prio", 0), request.get("protocol", ETH_P_ALL))


def filter_info(prio: int, protocol: int) -> int:
    """Return `tcm_info`: prio in the upper 16 bits, ethertype in network byte order in the lower."""
    return socket.htons(protocol) | prio << 16


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a filter; the module's docstring lists the keys. ValueError names a wrong value."""
    protocol = kwarg.get("protocol", ETH_P_ALL)
    attrs: list[tuple[str, Any]] = []
    if kwarg.get("classid"):
        attrs.append(("TCA_FLOWER_CLASSID", kwarg["classid"]))
    if kwarg.get("indev"):
        attrs.append(("TCA_FLOWER_INDEV", kwarg["indev"]))
    eth_type = kwarg.get("eth_type", protocol if protocol != ETH_P_ALL else None)
    if eth_type is not None:
        attrs.append(("TCA_FLOWER_KEY_ETH_TYPE", eth_type))
    attrs += [*_macs(kwarg), *_vlan(kwarg), *_addresses(kwarg), *_transport(kwarg)]
    flags = SKIP_SW * bool(kwarg.get("skip_sw")) | SKIP_HW * bool(kwarg.get("skip_hw"))
    attrs.append(("TCA_FLOWER_FLAGS", flags))
    if kwarg.get("action"):
        actions = kwarg["action"]
        chain = encode_actions([actions] if isinstance(actions, Mapping) else actions)
        attrs.append(("TCA_FLOWER_ACT", chain))
    return {"attrs": [list(attr) for attr in attrs]}


def _macs(kwarg: Mapping[str, Any]) -> Attrs:
    for key, attribute in (("src_mac", "ETH_SRC"), ("dst_mac", "ETH_DST")):
        if kwarg.get(key):
            yield f"TCA_FLOWER_KEY_{attribute}", kwarg[key]


def _vlan(kwarg: Mapping[str, Any]) -> Attrs:
    for tag in ("vlan", "cvlan"):
        attribute = f"TCA_FLOWER_KEY_{tag.upper()}"
        if kwarg.get(f"{tag}_id") is not None:
            yield f"{attribute}_ID", kwarg[f"{tag}_id"]
        if kwarg.get(f"{tag}_prio") is not None:
            yield f"{attribute}_PRIO", kwarg[f"{tag}_prio"]
        if kwarg.get(f"{tag}_ethtype") is not None:
            inner = kwarg[f"{tag}_ethtype"]
            yield f"{attribute}_ETH_TYPE", _NEXT_TYPES.get(inner, inner)


def _addresses(kwarg: Mapping[str, Any]) -> Attrs:
    for key, end in (("src_ip", "SRC"), ("dst_ip", "DST")):
        if kwarg.get(key) is None:
            continue
        interface = ipaddress.ip_interface(kwarg[key])
        attribute = f"TCA_FLOWER_KEY_IPV{interface.version}_{end}"
        yield attribute, str(interface.ip)
        if interface.network.prefixlen != interface.max_prefixlen:
            yield f"{attribute}_MASK", str(interface.netmask)


def _transport(kwarg: Mapping[str, Any]) -> Attrs:
    protocol = kwarg.get("ip_proto")
    number = _PROTOCOLS.get(protocol, protocol) if isinstance(protocol, str) else protocol
    if isinstance(number, str):
        raise ValueError(f"ip_proto is {protocol!r}; should be a number or one of {', '.join(_PROTOCOLS)}")
    if number is not None:
        yield "TCA_FLOWER_KEY_IP_PROTO", number
    for key, end in (("src_port", "SRC"), ("dst_port", "DST")):
        if kwarg.get(key) is None:
            continue
        if number not in PORT_KEYS:
            raise ValueError(f"{key} needs ip_proto tcp, udp or sctp, not {protocol!r}")
        value, mask = kwarg[key] if isinstance(kwarg[key], tuple) else (kwarg[key], None)
        yield f"TCA_FLOWER_KEY_{PORT_KEYS[number]}_{end}", value
        if mask is not None:
            yield f"TCA_FLOWER_KEY_{PORT_KEYS[number]}_{end}_MASK", mask
    if kwarg.get("ip_flags") is not None:
        bits = [IP_FLAGS[name] for name in kwarg["ip_flags"].split("/")]
        yield "TCA_FLOWER_KEY_FLAGS", sum(value for value, _ in bits)
        yield "TCA_FLOWER_KEY_FLAGS_MASK", sum(mask for _, mask in bits)
