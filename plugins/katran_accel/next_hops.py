# SPDX-License-Identifier: Apache-2.0
"""Where packets go next: for each device and real the MAC address to which the kernel would send.

look() asks the kernel ─► Facts ─► send_by() ─► Sending ─► maps: ctl_array, hw_accel_next_hops, reals, hw_accel_devices

Reals with the same next hop on each device are a group. Group 0 is where most go: on the first device its MAC address
is Katran's default one, `ctl_array[0]`. What is not known at present stays as it was known last.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import Address
from nfcore.api.rules import Device
from nfcore.errors import HostError
from nfcore.kernel.links import format_mac, ports_of, read_link
from nfcore.kernel.routes import NoRouteError, RouteReader
from nfcore.refusals import explain

from . import layouts as lay

PATIENCE, PAUSE = 3.0, 0.02
"""Seconds that a start waits for gateways to answer, as long as the kernel asks them; and between two looks."""
MOST_NAMED = 3
"""Reals that a message names."""
NO_MAC = bytes(6)


@dataclass(frozen=True)
class Hop:
    """The station to which one device sends packets for a real."""

    address: Address | None
    """None: what the TOML gives by its MAC address."""
    gateway: bool = True
    """False: the real itself."""

    def __str__(self) -> str:
        if self.address is None:
            return "the gateway_mac of the configuration"
        return f"the gateway {self.address}" if self.gateway else f"the real {self.address}"


FIXED = Hop(None)
Hops = tuple[Hop | None, ...]
"""The next hop on each device; None: none has ever been known."""
Macs = tuple[bytes | None, ...]
"""The same as MAC addresses."""


@dataclass(frozen=True)
class DeviceFacts:
    """What the kernel says about one device."""

    device: Device
    mac: bytes
    """Its own address; zeros while there is no such link."""
    ports: Mapping[int, bytes] = field(default_factory=dict)
    """ifindex → MAC address of the links by whose way its packets come, such as those of a bond."""
    is_aggregate: bool = False
    """Whether it is of the kind that has such ports."""
    hops: Mapping[Address, Hop] = field(default_factory=dict)
    """Real → next hop, of those that have a route."""
    unreachable: Mapping[Address, str] = field(default_factory=dict)
    """Real → why no route leads there out of this device."""
    macs: Mapping[Hop, bytes] = field(default_factory=dict)
    """Of the next hops whose address is known."""
    silent: frozenset[Hop] = frozenset()
    """Next hops that do not answer; the others without an address are being asked."""


@dataclass(frozen=True)
class Facts:
    """What the kernel says, about each device in its order."""

    devices: tuple[DeviceFacts, ...]
    reals: tuple[Address, ...]

    def unanswered(self) -> Iterator[tuple[DeviceFacts, Hop]]:
        """Give the gateways whose MAC addresses are not known."""
        for facts in self.devices:
            for hop in dict.fromkeys(facts.hops.values()):
                if hop.gateway and hop not in facts.macs:
                    yield facts, hop


def look(
    devices: Sequence[Device], fixed: Sequence[bytes | None], reals: Iterable[Address], *, confirm: bool = False
) -> Facts:
    """Ask the kernel, and let it ask neighbours; waits for no other machine. Any thread may call it.

    fixed: per device the MAC address that the TOML gives, or None: as the kernel would send. confirm: gateways are
    asked whether theirs are still right. HostError: no socket.
    """
    reals = tuple(reals)
    try:
        with RouteReader() as reader:
            found = [_look_at(reader, device, mac, reals, confirm) for device, mac in zip(devices, fixed, strict=True)]
    except OSError as error:
        raise HostError(f"the kernel cannot be asked for next hops: {explain(error)}") from error
    return Facts(tuple(found), reals)


def assume(device: Device, own: bytes, mac: bytes, reals: Iterable[Address]) -> Facts:
    """Say what the kernel would of a device that does not exist, for test packets: all packets go to `mac`.

    own: the device's address; NO_MAC: it takes frames to any.
    """
    reals = tuple(reals)
    return Facts((DeviceFacts(device, own, {}, False, dict.fromkeys(reals, FIXED), {}, {FIXED: mac}),), reals)


def _look_at(
    reader: RouteReader, device: Device, fixed: bytes | None, reals: Sequence[Address], confirm: bool
) -> DeviceFacts:
    link = read_link(device.ifindex)
    mac = NO_MAC if link is None or not link.mac else link.mac
    is_aggregate = link is not None and link.is_aggregate
    ports = ports_of(device.ifindex) if is_aggregate else ()
    port_macs = {port.ifindex: port.mac or mac for port in ports}
    if fixed is not None:
        return DeviceFacts(device, mac, port_macs, is_aggregate, dict.fromkeys(reals, FIXED), {}, {FIXED: fixed})
    hops: dict[Address, Hop] = {}
    unreachable: dict[Address, str] = {}
    for real in reals:
        try:
            found = reader.next_hop(real, device.ifindex)
            hops[real] = Hop(found.address, found.gateway)
        except NoRouteError as error:
            unreachable[real] = str(error)
    macs: dict[Hop, bytes] = {}
    silent = set()
    for hop in dict.fromkeys(hops.values()):
        assert hop.address is not None  # it came from the kernel
        neighbour = reader.neighbour(hop.address, device.ifindex)
        if neighbour.mac is not None:
            macs[hop] = neighbour.mac
        # Also when it is known: the kernel does not confirm by itself what XDP alone sends to.
        ask = reader.confirm if confirm and hop.gateway and neighbour.mac is not None else reader.resolve
        asked = neighbour.fixed or ask(hop.address, device.ifindex)
        if neighbour.failed or not asked:
            silent.add(hop)
    return DeviceFacts(device, mac, port_macs, is_aggregate, hops, unreachable, macs, frozenset(silent - macs.keys()))


@dataclass(frozen=True)
class Sending:
    """What packets are sent by: the maps' content, and what it was made from."""

    devices: tuple[DeviceFacts, ...] = ()
    groups: Mapping[Address, int] = field(default_factory=dict)
    """Real → its group, `next_hop` in `reals`."""
    members: Mapping[int, Hops] = field(default_factory=dict)
    """Group → its next hops; those of group 0 are none while no MAC address is known."""
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(1, lay.CTL_VALUE))
    """By group and device, of lay.CTL_VALUE, shape (groups * devices,). Those of numbers without a group are zeros."""
    hops: Mapping[Address, Hops] = field(default_factory=dict)
    """Real → its own next hop on each device, as it was known last."""
    macs: tuple[Mapping[Hop, bytes], ...] = ()
    """Per device: MAC addresses as they were known last."""
    troubles: tuple[str, ...] = ()
    """What is wrong, so that packets may be lost."""
    warnings: tuple[str, ...] = ()
    sticky: frozenset[tuple[int, Hop]] = frozenset()
    """(ifindex, next hop) that have not answered, until they do."""

    def slots(self) -> NDArray[np.uint32]:
        """Give the places of the groups' rows, in order; the first is group 0 on the first device."""
        devices = max(len(self.devices), 1)
        return np.array([group * devices + place for group in sorted(self.members) for place in range(devices)], "u4")

    def mac_of(self, real: Address, device: int) -> bytes | None:
        """The MAC address to which the device with this place sends packets for a real; None: they are dropped."""
        slot = self.groups[real] * max(len(self.devices), 1) + device
        row = self.rows[slot]
        return bytes(row["mac"]) if row["pad"][0] else None


def send_by(before: Sending, facts: Facts) -> Sending:
    """Find out by what packets are to be sent. Pure; `before`: by what they are sent now."""
    count = len(facts.devices)
    known: list[dict[Hop, bytes]] = []
    for place, device in enumerate(facts.devices):
        last = before.macs[place] if place < len(before.macs) else {}
        known.append({**{hop: mac for hop, mac in last.items() if hop != FIXED}, **device.macs})
    own = {
        real: tuple(device.hops.get(real) or _still(before, real, place) for place, device in enumerate(facts.devices))
        for real in facts.reals
    }
    default = [_most_common(hops[place] for hops in own.values()) for place in range(count)]
    # A real without any route of its own goes to where most do: a balancer may have no address of its real's family.
    used = {real: tuple(hop or default[place] for place, hop in enumerate(hops)) for real, hops in own.items()}
    macs = _macs_of(before, used, known)
    members = _number(before, Counter(used.values()), {hops for hops, each in macs.items() if None not in each})
    numbers = {hops: number for number, hops in members.items()}
    rows = np.zeros((max(members) + 1) * max(count, 1), lay.CTL_VALUE)
    for number, hops in members.items():
        for place, mac in enumerate(macs.get(hops, ())):
            if mac is not None:
                rows[number * count + place] = (list(mac), (1, 0))
    in_use = {(place, hop) for hops in used.values() for place, hop in enumerate(hops)}
    sticky = frozenset(
        (device.device.ifindex, hop)
        for place, device in enumerate(facts.devices)
        for hop in dict.fromkeys(device.hops.values())
        if hop not in device.macs and (hop in device.silent or (device.device.ifindex, hop) in before.sticky)
    )
    result = Sending(
        facts.devices,
        {real: numbers[hops] for real, hops in used.items()},
        members,
        rows,
        own,
        tuple({hop: mac for hop, mac in each.items() if (place, hop) in in_use} for place, each in enumerate(known)),
        sticky=sticky,
    )
    troubles, warnings = _judge(result, before, facts)
    return replace(result, troubles=tuple(troubles), warnings=tuple(warnings))


def _still(before: Sending, real: Address, place: int) -> Hop | None:
    """The next hop of a real as it was known last; not what the TOML had given."""
    hops = before.hops.get(real, ())
    return hops[place] if place < len(hops) and hops[place] != FIXED else None


def _most_common(hops: Iterable[Hop | None]) -> Hop | None:
    """The gateway of most reals; without a gateway None."""
    counted = Counter(hop for hop in hops if hop is not None and hop.gateway)
    return counted.most_common(1)[0][0] if counted else None


def _macs_of(before: Sending, used: Mapping[Address, Hops], known: Sequence[Mapping[Hop, bytes]]) -> dict[Hops, Macs]:
    """The MAC addresses of each tuple of next hops; of one that has never answered those that its reals had before."""
    found: dict[Hops, Macs] = {}
    for real, hops in used.items():
        macs = found.get(hops, tuple(None if hop is None else known[place].get(hop) for place, hop in enumerate(hops)))
        if None in macs and real in before.groups and len(before.devices) == len(hops):
            macs = tuple(mac or before.mac_of(real, place) for place, mac in enumerate(macs))
        found[hops] = macs
    return found


def _number(before: Sending, wanted: Counter[Hops], ready: set[Hops]) -> dict[int, Hops]:
    """Give each tuple of next hops the number that it had, or a free one. 0 is one of `ready`: those with addresses."""
    first = before.members.get(0, ())
    if first not in ready:

        def worth(hops: Hops) -> tuple[int, int]:
            return sum(hop is not None and hop.gateway for hop in hops), wanted[hops]

        first = max(ready, key=worth, default=())
    kept = {number: hops for number, hops in before.members.items() if number and hops in wanted and hops != first}
    # A number that is in use now gets no other meaning: packets may be on their way by it.
    free = (number for number in range(1, 2 * lay.MAX_REALS) if number not in before.members)
    new = [hops for hops in wanted if hops != first and hops not in kept.values()]
    return {0: first, **kept, **dict(zip(free, new, strict=False))}


def _judge(now: Sending, before: Sending, facts: Facts) -> tuple[list[str], list[str]]:
    """Say what is wrong, and what an operator should know."""
    troubles, warnings = [], []
    for place, device in enumerate(facts.devices):
        name = device.device.name
        lost = [real for real in device.unreachable if now.hops[real][place] is not None]
        never = [real for real in device.unreachable if now.hops[real][place] is None]
        if lost:
            why = device.unreachable[lost[0]]
            troubles.append(f"{name}: no route to {name_reals(lost)} any more ({why}); {_goes(now, lost[0], place)}")
        # A family in which there is no route at all is as on a balancer without addresses of that family.
        routed = {real.version for real in device.hops}
        odd = [real for real in never if real.version in routed or device.unreachable[real].startswith("it ")]
        if odd:
            why = device.unreachable[odd[0]]
            warnings.append(f"{name}: no route to {name_reals(odd)} ({why}); {_goes(now, odd[0], place)}")
        for hop in dict.fromkeys(device.hops.values()):
            if (device.device.ifindex, hop) in now.sticky:
                reals = [real for real, each in device.hops.items() if each == hop]
                text = f"{name}: {hop} does not answer with its MAC address; {_goes(now, reals[0], place)}"
                (troubles if hop.gateway else warnings).append(text)
    return troubles, warnings


def _goes(sending: Sending, real: Address, place: int) -> str:
    mac = sending.mac_of(real, place)
    return "its packets are dropped" if mac is None else f"packets still go to {format_mac(mac)}"


def changes(before: Sending, now: Sending) -> list[str]:
    """Say what is different in what packets are sent by, a sentence each."""
    found = []
    for place, device in enumerate(now.devices):
        name = device.device.name
        if place < len(before.devices) and before.devices[place].mac != device.mac:
            found.append(f"{name}: its own MAC address is {format_mac(device.mac)} now")
        moved: dict[tuple[Hop | None, bytes | None], list[Address]] = {}
        for real in now.hops:
            if real in before.groups and place < len(before.devices):
                mac = now.mac_of(real, place)
                if mac != before.mac_of(real, place):
                    moved.setdefault((now.members[now.groups[real]][place], mac), []).append(real)
        for (hop, mac), reals in moved.items():
            found.append(f"{name}: packets to {name_reals(reals)} go to {format_mac(mac or NO_MAC)} now, {hop}")
    return found


def name_reals(reals: Sequence[Address]) -> str:
    """Name some reals, for a message."""
    some = ", ".join(str(real) for real in reals[:MOST_NAMED])
    more = len(reals) - MOST_NAMED
    return f"{'reals' if len(reals) > 1 else 'real'} {some}{f' and {more:,} more' if more > 0 else ''}"


def look_patiently(look_again: Callable[[], Facts]) -> Facts:
    """Look until all gateways have answered, or some do not in time."""
    deadline = time.monotonic() + PATIENCE
    facts = look_again()
    while any(facts.unanswered()) and time.monotonic() < deadline:
        time.sleep(PAUSE)
        facts = look_again()
    return facts


def require_next_hops(facts: Facts, advice: str) -> Facts:
    """HostError when a device has no way to any real, or a gateway has not answered."""
    require_routes(facts, advice)
    for device, hop in facts.unanswered():
        raise HostError(f"{hop} of interface {device.device.name} does not answer with its MAC address; {advice}")
    return facts


def require_routes(facts: Facts, advice: str) -> None:
    """HostError when a device has no way to any real."""
    for device in facts.devices:
        name = device.device.name
        if facts.reals and not device.hops:
            why = next(iter(device.unreachable.values()))
            raise HostError(
                f"interface {name} has no route to {name_reals(facts.reals)} ({why}) and no default route with a "
                f"gateway; {advice}"
            )


def device_rows(sending: Sending) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
    """Give ifindexes and rows of `hw_accel_devices`: of each device, and of the ports by whose way its packets come."""
    keys, rows = [], []
    for number, facts in enumerate(sending.devices):
        ifindex = facts.device.ifindex
        for key, mac in [(ifindex, facts.mac), *facts.ports.items()]:
            keys.append(key)
            rows.append((ifindex, number, list(mac), (0, 0)))
    return np.array(keys, np.uint32), np.array(rows, lay.DEVICE)
