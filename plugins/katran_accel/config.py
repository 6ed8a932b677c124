# SPDX-License-Identifier: Apache-2.0
"""The TOML table `[katran_accel]`: its model and its checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer

from nfcore.api.config import NO_BACKEND, Config, ConfigTable, Network, parse_network
from nfcore.api.flows import PROTOCOL_NUMBERS, Address
from nfcore.errors import Problem, Remark, key_path
from nfcore.kernel import examine_header

from .entry_files import EntryFile, read_server_ids, read_source_routes
from .hosts import no_host, server_address, try_to
from .layouts import MAX_DECAP_ADDRESSES, MAX_PREFIX_VIPS, MAX_REALS, MAX_VIPS, VipFlag

NAME = "katran_accel"
"""Name of the plugin, of its table and of its network function."""
GUE_ADVICE = f'give it an IPv6 real, or set {NAME}.encapsulation = "gue"'
MAC_WANTED = "should be 'auto' or the MAC address of one station, such as '02:00:5e:10:00:01'"
LEAST_MTU = 576
"""Which each IPv4 host takes."""
FLAG_NAMES = {flag.name.lower(): flag for flag in VipFlag if flag.name}


_PORT_ADVICE = "for several ports, write one [[katran_accel.vips]] for each"


def _port(value: object) -> object:
    if isinstance(value, list | str):
        raise ValueError(f"should be one port from 0 (every port) to 65535; {_PORT_ADVICE}")
    return value


def _mac(value: object) -> str:
    if value == "auto":
        return "auto"
    # The lowest bit of the first byte marks a group, which no gateway is.
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", value):
        return value.lower()
    raise ValueError(MAC_WANTED)


def _gateway_mac(value: object) -> str | dict[str, str]:
    # check_table() says which of several is wrong.
    return {name: str(mac).lower() for name, mac in value.items()} if isinstance(value, dict) else _mac(value)


def _destinations(value: object) -> str | list[str]:
    if value in ("own", "any") and isinstance(value, str):
        return value
    macs = isinstance(value, list) and all(each == "own" or _is_mac(each) for each in value)
    if isinstance(value, list) and value and macs:
        return [each.lower() for each in value]
    example = "['own', '00:00:5e:00:01:0a']"
    raise ValueError(f"should be 'own', 'any', or a list of MAC addresses and 'own', such as {example}")


def _is_mac(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value) is not None


def _source(version: int, value: object) -> str:
    address = None if value == "auto" else try_to(server_address, value)
    if value != "auto" and (address is None or address.version != version):
        raise ValueError(f"should be 'auto' or an IPv{version} address of this host")
    return str(value if address is None else address)


def _tunnel_source(version: int, value: object) -> str:
    address = None if value == "" else server_address(value)
    if address is not None and address.version != version:
        raise ValueError(f"should be an IPv{version} address")
    return "" if address is None else str(address)


def _absolute_path(of_what: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.startswith("/") and "\0" not in value):
        return value
    raise ValueError(f"should be the absolute path of {of_what}")


_folder = partial(_absolute_path, "a folder, such as '/run/nfcore/bpf/lb'")
_object = partial(_absolute_path, "a compiled object, such as '/usr/lib/bpf/balancer.bpf.o'")


def _cpus(value: object) -> list[int] | None:
    if value == "all":
        return None
    numbers = isinstance(value, list) and all(type(cpu) is int and 0 <= cpu < 128 for cpu in value)
    if isinstance(value, list) and numbers and len(set(value)) == len(value):
        return value
    raise ValueError("should be 'all' or a list of different CPU numbers below 128, such as [0, 1]")


def _format_cpus(cpus: list[int] | None) -> list[int] | str:
    return "all" if cpus is None else cpus


def _flag(value: object) -> str:
    if isinstance(value, str) and value in FLAG_NAMES:
        return value
    raise ValueError(f"should be one of {', '.join(FLAG_NAMES)}")


def format_network(network: Network) -> str:
    """Write a VIP's address as the TOML has it: without the prefix length of a single address."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _host(network: Network) -> str:
    """A VIP's address before a port."""
    return f"[{format_network(network)}]" if network.version == 6 else format_network(network)


def _map_bits(network: Network) -> int:
    """A VIP's address as the maps have it: 128 bits, of which an IPv4 address fills the first."""
    return int(network.network_address) << (128 - network.max_prefixlen)


def _map_key(network: Network) -> tuple[int, int]:
    """What of a VIP's key in the maps is its address: equal for 198.18.10.1 and c612:a01::, 0.0.0.0/0 and ::/0."""
    return _map_bits(network), network.prefixlen if network.prefixlen < network.max_prefixlen else 128


class RealTable(ConfigTable):
    """One real of a VIP."""

    address: Annotated[Address, BeforeValidator(server_address), PlainSerializer(str)]
    weight: int = Field(default=1, ge=0, le=65_535)
    """Share of the ring against the VIP's other reals; 0 drains."""
    local: bool = False
    """It is this host: packets of VIPs with the flag `local` are passed to the stack as they are."""
    down: bool = False
    """It has no slots, and UDP flows of a VIP with the flag `udp_flow_migration` leave it."""

    @property
    def share(self) -> int:
        """Weight in the ring."""
        return 0 if self.down else self.weight


class VipTable(ConfigTable):
    """One VIP."""

    address: Annotated[Network, BeforeValidator(parse_network), PlainSerializer(format_network)]
    port: Annotated[int, BeforeValidator(_port), Field(ge=0, le=65_535)]
    """0 takes every port."""
    protocol: Literal["tcp", "udp"]
    flags: list[Annotated[str, BeforeValidator(_flag)]] = Field(default=[])
    reals: list[RealTable]
    """Without any, or without any that has a weight, packets of new connections are dropped and counted."""

    @property
    def name(self) -> str:
        """The VIP as in metrics and messages, such as ``198.18.10.1:80/tcp``."""
        return f"{_host(self.address)}:{self.port}/{self.protocol}"

    @property
    def proto(self) -> int:
        """IP protocol number."""
        return PROTOCOL_NUMBERS[self.protocol]

    @property
    def flag_bits(self) -> int:
        """Flags as the maps have them."""
        return sum(FLAG_NAMES[flag] for flag in set(self.flags))

    @property
    def is_prefix(self) -> bool:
        """Whether the VIP has more than one address."""
        return self.address.prefixlen < self.address.max_prefixlen

    def loses_to(self, other: VipTable) -> bool:
        """Whether `other` takes packets that match this VIP: a port wins over port 0, then the longer prefix wins."""
        if self.proto != other.proto or self.address.version != other.address.version:
            return False
        same_port = 0 in (self.port, other.port) or self.port == other.port
        if not (same_port and self.address.overlaps(other.address)):
            return False
        return (other.port != 0, other.address.prefixlen) > (self.port != 0, self.address.prefixlen)

    def lies_beneath(self, other: VipTable) -> bool:
        """Whether this is a prefix, and the first bits of `other`, a longer one of the other family, are its bits."""
        if not self.is_prefix or self.address.version == other.address.version:
            return False
        alike = (self.port, self.protocol) == (other.port, other.protocol)
        different = _map_bits(self.address) ^ _map_bits(other.address)
        length = self.address.prefixlen
        return alike and length < other.address.prefixlen and not different >> (128 - length)


class HealthcheckTable(ConfigTable):
    """`[katran_accel.healthcheck]`: packets of health checkers reach the real that their socket's mark stands for."""

    interface: str = ""
    """Interface whose egress they pass; empty: the balancer's first."""
    out_interface: str = ""
    """Interface by which they leave, with their outer header; empty: `interface`."""
    base_mark: int = Field(default=1_000_000, ge=1, le=0xFFFF_FFFF - MAX_REALS)
    """SO_MARK of the real with number 0, which no real has: real 1 has the next one."""
    encapsulation: Literal["ipip", "gue"] = "ipip"
    gue_port: int = Field(default=6080, ge=1, le=65_535)
    gateway_mac: Annotated[str, BeforeValidator(_mac)] = "auto"
    """`auto`: for each probe that of the next hop towards the real, by the kernel's routes and neighbours."""
    source_v4: Annotated[str, BeforeValidator(partial(_source, 4))] = "auto"
    """Source of outer headers; `auto`: the one that the kernel uses towards the reals."""
    source_v6: Annotated[str, BeforeValidator(partial(_source, 6))] = "auto"


class DecapAddress(ConfigTable):
    """An address at which tunnels end."""

    address: Annotated[Address, BeforeValidator(server_address), PlainSerializer(str)]
    egress: bool = False
    """What comes in GUE goes out again as it is, to where the frame came from."""


class DecapTable(ConfigTable):
    """`[katran_accel.decap]`: packets that come in a tunnel are taken out of it before they are balanced."""

    ipip: bool = False
    gue: bool = False
    strict: bool = False
    """Tunnels to other addresses than those of `addresses` and the own `source_v4`, `source_v6` stay as they are."""
    addresses: list[DecapAddress] = Field(default=[], max_length=MAX_DECAP_ADDRESSES)
    """What was in a tunnel to one of these is balanced; what was in another one is passed to the stack."""


class ServerIdTable(ConfigTable):
    """A server id, by which a packet names its real."""

    id: int = Field(ge=1, le=0xFFFF_FFFF)
    real: Annotated[Address, BeforeValidator(server_address), PlainSerializer(str)]


class SourceRouteTable(ConfigTable):
    """Clients whose new flows go to a real that is not the ring's choice."""

    prefix: Annotated[Network, BeforeValidator(parse_network), PlainSerializer(format_network)]
    real: Annotated[Address, BeforeValidator(server_address), PlainSerializer(str)]


def _file(read: Callable[[object], EntryFile], value: object) -> EntryFile | None:
    return None if value is None else read(value)


_FILE_PATH = PlainSerializer(lambda file: None if file is None else file.path)
ServerIdsFile = Annotated[InstanceOf[EntryFile] | None, BeforeValidator(partial(_file, read_server_ids)), _FILE_PATH]
SourceRoutesFile = Annotated[
    InstanceOf[EntryFile] | None, BeforeValidator(partial(_file, read_source_routes)), _FILE_PATH
]


class KatranTable(ConfigTable):
    """`[katran_accel]`."""

    gateway_mac: Annotated[str | dict[str, str], BeforeValidator(_gateway_mac)] = "auto"
    """MAC address to which encapsulated packets go; `auto`: as the kernel would send them to each real. Or a table by
    interface; interfaces that it does not name are `auto`."""
    destination_mac: Annotated[str | list[str], BeforeValidator(_destinations)] = "own"
    """Frames that are taken: to the `own` MAC address of the interface that they come by, to `any`, or a list."""
    forwarding_cpus: Annotated[list[int] | None, BeforeValidator(_cpus), PlainSerializer(_format_cpus)] = "all"  # type: ignore[assignment]
    """CPUs with a connection table and marks of their own; the others share the fallback table."""
    lru_size: int = Field(default=262_144, ge=128, le=64_000_000)
    """Flows in the connection table of one CPU."""
    maglev: Literal[1, 2] = 2
    """Version of the ring. 2 shares slots by weight; 1, of older Katran set-ups, hardly regards weights."""
    vlan: bool = False
    """Frames with one or two VLAN tags are balanced, too, and keep them."""
    pin_dir: Annotated[str | None, BeforeValidator(_folder)] = None
    """Folder of a bpf file system where program and maps are pinned and outlive the daemon."""
    program: Annotated[str | None, BeforeValidator(_object)] = None
    """A compiled object with Katran's maps that is loaded in place of nfcore's program."""
    encapsulation: Literal["ipip", "gue"] = "ipip"
    gue_port: int = Field(default=6080, ge=1, le=65_535)
    """UDP port of GUE, to reals and in `decap`."""
    gue_checksum: Literal["right", "katran"] = "right"
    """`katran`: also where the inner packet is no TCP and Katran's outer UDP checksum is wrong."""
    source_v4: Annotated[str, BeforeValidator(partial(_tunnel_source, 4))] = ""
    """Source of outer IPv4 headers in GUE; needed for IPv4 reals."""
    source_v6: Annotated[str, BeforeValidator(partial(_tunnel_source, 6))] = ""
    icmp: bool = True
    """Echo requests to VIPs are answered, ICMP errors go to the real of the flow that they quote."""
    too_big: Literal["drop", "answer"] = "drop"
    """What becomes of packets longer than `mtu`; `answer`: the client is told."""
    mtu: int = Field(default=1500, ge=LEAST_MTU, le=9_216)
    """Longest IP packet of a client that is balanced; on the way to the reals it has its outer header, too."""
    fragments: Literal["drop", "hash-addresses"] = "drop"
    """`hash-addresses`: fragments go to a real by their addresses alone, so all of a datagram to the same one."""
    tcp_server_ids: bool = False
    """TCP packets with a server id among their options go to that real."""
    server_id_map: Literal["array", "hash"] = "array"
    """`array`, as published, takes 128 MiB and ids below 16,777,214; `hash` takes memory for those that exist."""
    new_flow_limit: int = Field(default=125_000, ge=1, le=0xFFFF_FFFF)
    """New flows of a CPU per second that are stored in its connection table."""
    decap: DecapTable = DecapTable()
    server_ids: list[ServerIdTable] = Field(default=[])
    """Reals by the ids in packets: QUIC connection ids, UDP stable routing, TCP server ids."""
    server_ids_file: ServerIdsFile = None
    """File with more of them, a line `id,real` each."""
    source_routes: list[SourceRouteTable] = Field(default=[])
    """For VIPs with the flag `src_routing`; the longest prefix counts."""
    source_routes_file: SourceRoutesFile = None
    """File with more of them, a line `prefix,real` each."""
    capture: bool = False
    """Whether the program can give samples of packets to `nfcore capture`."""
    introspection: bool = False
    """Whether it gives Katran's samples, in `event_pipe`."""
    vips: list[VipTable] = Field(min_length=1, max_length=MAX_VIPS)
    healthcheck: HealthcheckTable | None = None

    def fixed_mac(self, interface: str) -> bytes | None:
        """Give the MAC address that `gateway_mac` gives for an interface; None: it is to be found out."""
        mac = self.gateway_mac if isinstance(self.gateway_mac, str) else self.gateway_mac.get(interface, "auto")
        return None if mac == "auto" else bytes.fromhex(mac.replace(":", ""))

    @property
    def listed_macs(self) -> list[bytes]:
        """The MAC addresses of `destination_mac` beside the interface's own."""
        listed = self.destination_mac if isinstance(self.destination_mac, list) else []
        return [bytes.fromhex(mac.replace(":", "")) for mac in listed if mac != "own"]


def check_whole(config: Config) -> Iterator[Problem]:
    """Find interfaces in `gateway_mac` that do not have the balancer, and what a compiled object cannot do."""
    table = config.sections[NAME]
    assert isinstance(table, KatranTable)  # config_section() declares it
    if table.program is not None:
        yield from _check_use_of_object(config)
    known = [interface.name for interface in config.interfaces if NAME in interface.chain]
    for name in table.gateway_mac if isinstance(table.gateway_mac, dict) else ():
        if name not in known:
            there = ", ".join(known) or "none"
            message = f"is no interface of [[interfaces]] with {NAME} in its chain; there are: {there}"
            yield Problem(key_path(f"{NAME}.gateway_mac", name), message)


def _check_use_of_object(config: Config) -> Iterator[Problem]:
    """Find what a compiled object does not do: several interfaces, chains, marks."""
    where, own = f"{NAME}.program", [each for each in config.interfaces if NAME in each.chain]
    if len(own) > 1:
        names = ", ".join(each.name for each in own)
        yield Problem(where, f"sends by one MAC address, that of one interface, but {NAME} is on {names}: leave one")
    for interface in own:
        if len(interface.chain) > 1:
            others = " and ".join(each for each in interface.chain if each != NAME)
            yield Problem(where, f"cannot be in a chain: leave {others} out of that of {interface.name}")
        if backends := [each for each in interface.offload if each != NO_BACKEND]:
            ignored = f"[marking] and the rules of {', '.join(backends)} on {interface.name} are not used"
            yield Remark(where, f"knows no marks: {ignored}, every packet takes the slow path")


def count_pairs(table: KatranTable) -> int:
    """Count the (VIP, real) pairs that may have marks: the balancer's targets."""
    return 0 if table.program is not None else sum(len(vip.reals) for vip in table.vips)


def check_table(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find duplicates, impossible pairs and too many entries. Values that cannot be parsed are reported elsewhere."""
    macs = raw.get("gateway_mac")
    for name, mac in macs.items() if isinstance(macs, dict) else ():
        if try_to(_mac, mac) is None:
            yield Problem(key_path(f"{path}.gateway_mac", name), f"is {mac!r:.80}; {MAC_WANTED}")
    vips = raw.get("vips")
    tables = [vip if isinstance(vip, dict) else {} for vip in (vips if isinstance(vips, list) else ())]
    networks = [try_to(parse_network, vip.get("address")) for vip in tables]
    yield from _check_object(raw, path, networks)
    seen: dict[tuple[object, ...], int] = {}
    of_keys: dict[tuple[object, ...], tuple[int, Network]] = {}
    services: dict[Address, int] = {}
    for number, network in enumerate(networks):
        if network is not None and network.prefixlen == network.max_prefixlen:
            services.setdefault(network.network_address, number)
    for number, (vip, network) in enumerate(zip(tables, networks, strict=True)):
        where = f"{path}.vips[{number}]"
        if network is not None:
            service = (str(vip.get("port")), str(vip.get("protocol")))
            text = f"VIP {_host(network)}:{'/'.join(service)}"
            first = seen.setdefault((network, *service), number)
            other, known = of_keys.setdefault((*_map_key(network), *service), (number, network))
            if first != number:
                yield Problem(where, f"{text} is already {path}.vips[{first}]; list each VIP once")
            elif known.version != network.version:
                equal = f"{text} and {format_network(known)} of {path}.vips[{other}] have the same key in Katran's maps"
                is_prefix = network.prefixlen < network.max_prefixlen
                advice = "or divide it into two prefixes" if is_prefix else "or address"
                yield Problem(where, f"{equal}: give one of them another port{',' * is_prefix} {advice}")
            if what := no_host(network):
                text = f"is {vip.get('address')!r}; should be the address or the prefix of a service, not {what}"
                yield Problem(f"{where}.address", text)
        if "ports" in vip:
            yield Problem(f"{where}.ports", _PORT_ADVICE)
        yield from _remark_reals(vip.get("reals"), where)
        yield from _check_reals(vip.get("reals"), network, where, raw.get("encapsulation"), services)
    prefixes = sum(network is not None and network.prefixlen < network.max_prefixlen for network in networks)
    if prefixes > MAX_PREFIX_VIPS:
        yield Problem(f"{path}.vips", f"has {prefixes} prefixes; at most {MAX_PREFIX_VIPS} fit")


_COMPILED_IN = (
    *("destination_mac", "encapsulation", "gue_port", "gue_checksum", "icmp", "too_big", "mtu", "fragments", "vlan"),
    *("tcp_server_ids", "new_flow_limit"),
)
"""Keys about which a compiled object is not asked."""


def _check_object(raw: Mapping[str, Any], path: str, networks: Sequence[Network | None]) -> Iterator[Problem]:
    """Check that `program` is an object file, and find what is not for it."""
    program = try_to(_object, raw.get("program"))
    if program is None:
        return
    if problem := examine_header(Path(program)):
        yield Problem(f"{path}.program", f"is {program!r}, which {problem}")
    if raw.get("capture") is True:
        yield Problem(f"{path}.capture", f"is true, but {program} gives nfcore no samples; leave it out")
    for key in (key for key in raw if key in _COMPILED_IN):
        yield Remark(f"{path}.{key}", f"is not used: {program} is compiled to do it one way")
    for number, network in enumerate(networks):
        if network is not None and network.version == 4 and network.prefixlen < network.max_prefixlen:
            where = f"{path}.vips[{number}].address"
            yield Remark(where, f"is {network}; Katran's own programs look for prefixes of IPv6 only")


def _check_reals(
    raw: object, vip: Network | None, where: str, encapsulation: object, services: Mapping[Address, int]
) -> Iterator[Problem]:
    """Check one VIP's reals. `services`: VIPs of one address, by it."""
    known: dict[Address, int] = {}
    for number, real in enumerate(raw if isinstance(raw, list) else ()):
        address = try_to(server_address, real.get("address")) if isinstance(real, dict) else None
        if address is None:
            continue
        here = f"{where}.reals[{number}].address"
        if known.setdefault(address, number) != number:
            yield Problem(here, f"{str(address)!r} is already reals[{known[address]}] of this VIP")
        if vip is not None and vip.version == 6 and address.version == 4 and encapsulation != "gue":
            text = f"{str(address)!r} cannot serve an IPv6 VIP: by IPIP, IPv6 is encapsulated in IPv6 only; "
            yield Problem(here, text + GUE_ADVICE)
        if (service := services.get(address)) is None:
            continue
        if vip == ip_network(address):
            yield Problem(here, f"{str(address)!r} is the VIP itself: a packet sent there would come back")
        else:
            text = f"{str(address)!r} is that of vips[{service}], too: a packet sent there may come back"
            yield Remark(here, text)


def _remark_reals(raw: object, where: str) -> Iterator[Remark]:
    """Find a VIP that nobody serves. It is allowed: one empty service must not hinder the others' changes."""
    if not isinstance(raw, list):
        return
    if not raw:
        yield Remark(f"{where}.reals", "is []: packets to this VIP are dropped and counted")
    elif all(isinstance(real, dict) and _has_no_share(real) for real in raw):
        text = "have weight 0, all of them: packets of new connections to this VIP are dropped and counted"
        yield Remark(f"{where}.reals", text)


def _has_no_share(real: Mapping[str, Any]) -> bool:
    weight = real.get("weight")
    return real.get("down") is True or (type(weight) is int and weight == 0)
