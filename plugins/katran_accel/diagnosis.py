# SPDX-License-Identifier: Apache-2.0
"""The balancer's part of `nfcore doctor`: does the program load, is there a gateway, does the MTU suffice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nfcore.api.context import Context
from nfcore.api.findings import Finding, Status, finding_of
from nfcore.api.flows import Address
from nfcore.api.rules import Device
from nfcore.control.client import daemon_answers, request
from nfcore.errors import NfcoreError
from nfcore.kernel import check_bpffs
from nfcore.kernel.ethtool import LinkFacts, link_facts
from nfcore.kernel.links import format_mac, read_link, virtual_links_of

from .balancer import ADVICE, Balancer, meaning_of
from .config import LEAST_MTU, NAME, KatranTable
from .features import Features
from .katran_object import check_object
from .maps import Sizes, check_pins, forwarding_cpus
from .next_hops import NO_MAC, DeviceFacts, Facts, look, look_patiently, name_reals, require_next_hops
from .routing import reals_of_table

METHOD = f"{NAME}.next_hops"
"""The daemon's method that tells where its program sends packets."""
IP_HEADER = {4: 20, 6: 40}
"""Family → bytes of its header, without options."""
TCP_HEADER, UDP_HEADER = 20, 8
_TAKES_TAGS_OFF = {"rx-vlan-hw-parse": "rxvlan off", "rx-vlan-stag-hw-parse": "rx-vlan-stag-hw-parse off"}
_LEAVES_TAGS_BESIDE = {"tx-vlan-hw-insert": "txvlan off", "tx-vlan-stag-hw-insert": "tx-vlan-stag-hw-insert off"}
"""Feature of a NIC, and of a veth's peer, that keeps VLAN tags out of frames → how `ethtool -K` switches it off."""
MOST_HOPS = 3
"""Next hops that a finding names."""


def diagnose(context: Context, table: KatranTable) -> Iterator[Finding]:
    """Check what a packet needs on its way to a real: the program, the MTU of each device, the gateway."""
    yield _program(context, table)
    devices = context.devices_of(NAME)
    for device in devices:
        yield _mtu(table, device.name, device.ifindex)
        yield from _other_macs(table, device)
        if table.vlan:
            yield from examine_tags(device.name, link_facts(device.ifindex, device.name))
    yield from _gateways(context, table, devices)


def preconditions(context: Context, table: KatranTable) -> Iterator[Finding]:
    """Check the folders of pins, as far as a start cannot do without."""
    config, pin_dir = context.config, Path(table.pin_dir) if table.pin_dir else None
    sizes = Sizes(1, table.lru_size, config.marking.width, meaning_of(context, table), config.offload.events)
    sizes = replace(sizes, introspection=table.introspection)
    cpus = forwarding_cpus(table.forwarding_cpus)
    if table.program is not None:
        look = partial(check_object, Path(table.program), sizes, cpus, pin_dir)
        yield finding_of(f"{NAME}.program", look, f"{table.program}, its maps are Katran's")
    if Features.of(table).decap:
        folder = context.config.nf.call_pins
        yield finding_of(f"{NAME}.decap", partial(check_bpffs, folder), f"its program can be pinned in {folder}")
    if pin_dir is None:
        return

    def check() -> None:
        context.locks.folder(pin_dir)
        if table.program is None:
            check_pins(sizes, cpus, pin_dir)
        else:
            check_bpffs(pin_dir)

    yield finding_of(f"{NAME}.pin_dir", check, f"{pin_dir}, what is pinned there fits")


def _program(context: Context, table: KatranTable) -> Finding:
    balancer = Balancer(context.config, table, meaning_of(context, table))
    try:
        balancer.open(context)
        return Finding(f"{NAME}: program", Status.OK, f"loads, {balancer.program.jited_size:,} bytes")
    except NfcoreError as error:
        return Finding(f"{NAME}: program", Status.FAULT, str(error))
    finally:
        balancer.close()


def _other_macs(table: KatranTable, device: Device) -> Iterator[Finding]:
    """Name links on top of the device, such as those of VRRP, whose frames the balancer does not take."""
    own = read_link(device.ifindex)
    taken = {*table.listed_macs, own.mac if own is not None else b""}
    others = [link for link in virtual_links_of(device.ifindex) if link.mac not in taken]
    if others and table.destination_mac != "any":
        named = ", ".join(f"{format_mac(link.mac)} ({link.name})" for link in others)
        macs = [*(format_mac(mac) for mac in table.listed_macs), *(format_mac(link.mac) for link in others)]
        advice = f"if clients reach VIPs by it: {NAME}.destination_mac = {json.dumps(['own', *macs])}, and a restart"
        text = f"frames to {named} go to the kernel's stack, uncounted"
        yield Finding(f"{NAME}: other MAC addresses of {device.name}", Status.WARNING, text, advice)


def examine_tags(name: str, facts: LinkFacts) -> Iterator[Finding]:
    """Say whether VLAN tags are in the frames that XDP sees, and what helps if not."""
    what = f"{NAME}: VLAN tags on {name}"
    if facts.driver != "veth":
        on = [option for feature, option in _TAKES_TAGS_OFF.items() if facts.features.get(feature)]
        text, advice = "the NIC takes them off, and XDP does not see them", f"ethtool -K {name} {' '.join(on)}"
    elif facts.peer is not None:
        on = [option for feature, option in _LEAVES_TAGS_BESIDE.items() if facts.peer.features.get(feature)]
        text = f"its peer {facts.peer.name} leaves those of its own packets beside the frames, where XDP does not look"
        advice = facts.peer.command(" ".join(on))
    else:
        return
    yield Finding(what, Status.WARNING, text, advice) if on else Finding(what, Status.OK, "are in the frames")


def _gateways(context: Context, table: KatranTable, devices: Sequence[Device]) -> Iterator[Finding]:
    """Where packets go from each device, and whether a running daemon's program sends them there."""
    reals = reals_of_table(table)
    fixed = [table.fixed_mac(device.name) for device in devices]
    facts = look_patiently(lambda: look(devices, fixed, reals))
    used = _in_use(Path(context.config.nf.socket))
    for found in facts.devices:
        what = f"{NAME}: gateway" if len(devices) == 1 else f"{NAME}: gateway of {found.device.name}"
        try:
            require_next_hops(Facts((found,), facts.reals), ADVICE)
        except NfcoreError as error:
            yield Finding(what, Status.FAULT, str(error))
            continue
        yield _compare(what, found, used)


def _in_use(socket: Path) -> Mapping[tuple[str, str], str] | None:
    """(interface, real) → the MAC address to which a running daemon's program sends; None: no daemon tells."""
    try:
        rows = request(socket, METHOD) if daemon_answers(socket) else None
    except NfcoreError:
        return None
    return None if rows is None else {(row["interface"], real): row["mac"] for row in rows for real in row["reals"]}


def _compare(what: str, found: DeviceFacts, used: Mapping[tuple[str, str], str] | None) -> Finding:
    """Compare what the kernel says with what the program uses."""
    name = found.device.name
    for real, hop in found.hops.items():
        mac = format_mac(found.macs.get(hop, NO_MAC))
        program = mac if used is None else used.get((name, str(real)), mac)
        if program != mac and hop in found.macs:
            text = f"the program sends packets for {real} to {program}, but {hop} has {mac}"
            return Finding(
                what, Status.FAULT, text, "nfcore reload CONFIG; the daemon's log says why it did not follow"
            )
    hops = [f"{format_mac(found.macs[hop])}, {hop}" for hop in dict.fromkeys(found.hops.values()) if hop in found.macs]
    text = "; ".join(hops[:MOST_HOPS]) + (f" and {len(hops) - MOST_HOPS} more" if len(hops) > MOST_HOPS else "")
    missing = [real for real, hop in found.hops.items() if hop not in found.macs]
    if missing:
        return Finding(what, Status.WARNING, f"{text}; {name_reals(missing)} on the link do not answer", "ip neigh")
    # A family in which there is no route at all is as on a balancer without addresses of that family.
    routed = {real.version for real in found.hops}
    for real, why in found.unreachable.items():
        if real.version in routed:
            others = [each for each, reason in found.unreachable.items() if reason == why and each.version in routed]
            advice = f"ip route get {real} oif {name}"
            return Finding(what, Status.WARNING, f"{text}; no route to {name_reals(others)} ({why})", advice)
    return Finding(what, Status.OK, text)


def _mtu(table: KatranTable, name: str, ifindex: int) -> Finding:
    """Whether the longest packet that is balanced still fits with the outer header."""
    return examine_mtu(table, name, link_facts(ifindex, name).mtu)


def examine_mtu(table: KatranTable, name: str, mtu: int) -> Finding:
    """Say whether a packet of `katran_accel.mtu` bytes fits into `mtu` with the outer header, and what helps if not.

    Clients learn from the SYN-ACK how long their segments may be. A real sends it, past the balancer: the MSS is that
    of the real's route to its clients, in the family of the VIP.
    """
    what, outer = f"{name}: room for encapsulation", _outer(table, reals_of_table(table))
    if mtu >= table.mtu + outer:
        return Finding(what, Status.OK, f"MTU {mtu}")
    found = f"MTU {mtu}: packets of more than {mtu - outer} bytes do not fit with {outer} bytes of outer header"
    advice = [f"an MTU of {table.mtu + outer} from here to the reals"]
    if mtu - outer >= LEAST_MTU:
        answer = "" if table.too_big == "answer" else f' and {NAME}.too_big = "answer"'
        advice.append(f"{NAME}.mtu = {mtu - outer}{answer}: clients are told, by ICMP")
    commands = []
    for family, ip in ((4, "ip"), (6, "ip -6")):
        vips = [vip for vip in table.vips if vip.protocol == "tcp" and vip.address.version == family]
        if vips:
            reals = [real.address for vip in vips for real in vip.reals]
            mss = mtu - _outer(table, reals) - IP_HEADER[family] - TCP_HEADER
            commands.append(f"{ip} route change $({ip} route show default) advmss {mss}")
    if commands:
        said = "have the reals announce a smaller MSS to clients, by their route there"
        advice.append(f"{said}: {'; '.join(commands)}")
    return Finding(what, Status.WARNING, found, "; or ".join(advice))


def _outer(table: KatranTable, reals: Sequence[Address]) -> int:
    """Bytes of the longest outer header that packets to these reals get."""
    udp = UDP_HEADER if table.encapsulation == "gue" else 0
    return udp + max((IP_HEADER[real.version] for real in reals), default=IP_HEADER[4])
