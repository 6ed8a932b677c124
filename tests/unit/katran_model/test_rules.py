# SPDX-License-Identifier: Apache-2.0
"""Published rules that no published packet shows."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.katran_model import connections, frames
from tests.katran_model.decap import Decap
from tests.katran_model.features import Features
from tests.katran_model.healthcheck import Healthcheck
from tests.katran_model.maps import MAX_REALS, Connection, FlowKey, Prefix, Real, VipFlag, VipKey
from tests.katran_model.packet import TCP, UDP, Verdict
from tests.katran_model.suites import real

from .scene import CLIENT, OWN, REALS, RST, SERVERS, SYN, VIP, answer, balancer, error, send, sent_to, tcp, udp

SECOND = 1_000_000_000
PUBLISHED_KEY = FlowKey(CLIENT[4].ljust(16, b"\0"), VIP[4].ljust(16, b"\0"), 31337, 80, TCP)
KEY = PUBLISHED_KEY._replace(family=4)
UDP_KEY = KEY._replace(protocol=UDP)
UDP_VIP = VipKey(VIP[4].ljust(16, b"\0"), 80, UDP)
SERVER = {number: server for server, number in SERVERS.items()}


def option(server: int) -> bytes:
    """The TCP option with a server's id."""
    return struct.pack("<BBI", 0xB7, 6, server)


def filled(options: bytes) -> bytes:
    """Options up to a whole word."""
    return options + b"\0" * (-len(options) % 4)


def quic(server: int, version: int = 2) -> bytes:
    """A short header with the id of a server."""
    if version == 3:
        return bytes([0x40, 0xC0]) + server.to_bytes(4, "big") + bytes(8)
    return bytes([0x40, version << 6]) + server.to_bytes(3, "big") + bytes(8)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (b"\1" * 14 + option(SERVER[6]), True),
        (b"\1" * 15 + option(SERVER[6]), False),
        (b"\2\4\5\xb4" + option(SERVER[6]), True),
        (b"\0" + option(SERVER[6]), False),
        (b"\2\x29" + option(SERVER[6]), False),
        (b"\xb7\7" + option(SERVER[6]), False),
        (b"\2\0" + option(SERVER[6]), False),
        (option(0), False),
        (option(SERVER[6])[:4], False),
    ],
)
def test_a_tcp_server_id_is_among_the_first_15_options(options: bytes, found: bool) -> None:
    program = balancer({"tcp_server_ids": True})
    step = send(program, tcp(options=filled(options)))
    assert (sent_to(step) == real(REALS[6])) == found
    assert step.counters.fields == {"tpr_stats_map.sid_routed" if found else "tpr_stats_map.ch_routed": 1}


def test_an_id_corrects_the_connection_and_counts_as_expired_afterwards() -> None:
    program = balancer(flags=VipFlag.QUIC)
    by_ring = sent_to(send(program, udp(), now=SECOND))
    other = next(number for number in (1, 2, 3) if real(REALS[number]) != by_ring)
    step = send(program, udp(payload=quic(SERVER[other])), now=2 * SECOND)
    assert (sent_to(step), step.counters.published()["server_id_stats[1]"]) == (real(REALS[other]), [0, 1])
    assert sent_to(send(program, udp(), now=3 * SECOND)) == real(REALS[other])
    program.memory.tables.clear()
    send(program, udp(payload=quic(SERVER[other])), now=40 * SECOND)
    assert program.memory.tables[-1] == {UDP_KEY: Connection(other, 0)}
    assert sent_to(send(program, udp(), now=41 * SECOND)) == by_ring


@pytest.mark.parametrize(
    ("payload", "counted"),
    [
        (b"", "ch_routed"),
        (b"\xc0" + bytes(12), "ch_routed"),
        (b"\xc0" + bytes(13), "cid_initial"),
        (b"\xe0\0\0\0\1\7" + bytes(8), "ch_routed"),
        (b"\x40" + bytes(7), "ch_routed"),
        (quic(SERVER[1], version=0), "ch_routed"),
        (quic(0), "ch_routed"),
    ],
)
def test_quic_without_an_id(payload: bytes, counted: str) -> None:
    step = send(balancer(flags=VipFlag.QUIC), udp(payload=payload))
    assert step.counters.fields == {f"quic_stats_map.{counted}": 1}


def test_ids_of_32_bits_are_signed_and_looked_up_in_a_hash_map() -> None:
    program = balancer({"hashed_server_ids": True}, VipFlag.QUIC)
    program.maps.server_ids |= {0x7FFFFFFF: 2, 0x80000000: 2}
    assert send(program, udp(payload=quic(0x7FFFFFFF, 3))).counters.fields["quic_stats_map.cid_v3"] == 1
    assert send(program, udp(payload=quic(0x80000000, 3))).counters.fields == {"quic_stats_map.ch_routed": 1}


def test_quic_for_a_real_that_is_not_there_is_dropped_and_sampled() -> None:
    program = balancer({"introspection": True}, VipFlag.QUIC)
    program.maps.server_ids[9] = MAX_REALS
    program.maps.introspection = True
    step = send(program, udp(payload=quic(9) + bytes(200)))
    frame = frames.ethernet(udp(payload=quic(9) + bytes(200)))
    assert step.verdict is Verdict.DROP
    assert [event.published() for event in step.events] == [struct.pack("=III", 2, len(frame), 128) + frame[:128]]


@pytest.mark.parametrize(("code", "ignorable"), [(1, 1), (3, 1), (4, 0)])
def test_quic_ids_are_not_read_in_errors(code: int, ignorable: int) -> None:
    packet = frames.icmp(CLIENT[4], VIP[4], 3, code, 1400, answer(protocol=UDP))
    step = send(balancer(flags=VipFlag.QUIC), packet)
    assert step.counters.published()["stats[523]"] == [1, ignorable]
    assert not step.counters.fields


def test_stable_routing_leaves_the_connection_table_alone() -> None:
    program = balancer({"udp_stable_routing": True}, VipFlag.UDP_STABLE_ROUTING)
    step = send(program, udp(payload=b"\x52" + SERVER[6].to_bytes(3, "big") + b"rest"))
    assert (sent_to(step), program.memory.tables) == (real(REALS[6]), {-1: {}})


def test_global_connections_are_asked_after_the_local_ones_and_not_copied() -> None:
    program = balancer({"global_lru": True}, VipFlag.GLOBAL_LRU)
    program.maps.fallback_global_lru[PUBLISHED_KEY] = 5
    assert sent_to(send(program, tcp(flags=SYN))) != real(REALS[5])
    program.memory.tables.clear()
    step = send(program, tcp())
    assert (sent_to(step), program.memory.tables) == (real(REALS[5]), {-1: {}})
    assert step.counters.published()["stats[520]"] == [1, 1]
    program.maps.global_lrus[0] = {PUBLISHED_KEY: 6}
    step = send(program, tcp())
    assert (sent_to(step), step.counters.published()["stats[520]"]) == (real(REALS[6]), [0, 1])


def test_a_down_real_is_left_and_number_0_stands_for_new_flows() -> None:
    program = balancer(flags=VipFlag.UDP_MIGRATION)
    before = sent_to(send(program, udp()))
    number = next(number for number, address in REALS.items() if real(address) == before)
    program.maps.down_reals[UDP_VIP] = {number}
    program.maps.rings[1] = [6] * 65_537
    step = send(program, udp())
    assert (sent_to(step), step.counters.published()["stats[527]"]) == (real(REALS[6]), [1, 0])
    program.maps.down_reals[UDP_VIP] = {0}
    assert "stats[527]" in send(program, udp(sport=1)).counters.published()


def test_a_local_real_of_a_local_vip_has_the_packet_passed() -> None:
    program = balancer({"local_delivery": True}, VipFlag.LOCAL)
    program.maps.reals = {number: Real(*each[:2], local=True) for number, each in program.maps.reals.items()}
    step = send(program, tcp())
    assert (step.verdict, step.frame) == (Verdict.PASS, frames.ethernet(tcp()))
    assert step.counters.published()["stats[0]"] == [1, len(tcp())]


def test_in_a_flood_nothing_is_stored_routed_by_source_or_migrated() -> None:
    program = balancer({"source_routing": True}, VipFlag.SOURCE_ROUTING | VipFlag.UDP_MIGRATION)
    program.maps.source_routes[4][Prefix.of(ip_network("192.168.0.0/16"))] = 6
    program.maps.down_reals[UDP_VIP] = {0}
    program.memory.windows[0] = connections.MOST_NEW_FLOWS, SECOND
    step = send(program, udp(), now=2 * SECOND)
    assert (sent_to(step) == real(REALS[6]), program.memory.tables) == (False, {-1: {}})
    assert step.counters.pairs.keys() & {("stats", 517), ("stats", 527)} == set()
    assert sent_to(send(program, udp(), now=2 * SECOND + 1)) == real(REALS[6])


def test_a_reset_is_looked_up_and_never_stored() -> None:
    program = balancer()
    send(program, tcp(flags=RST))
    assert program.memory.tables == {-1: {}}
    program.memory.tables[-1][KEY] = Connection(6, 0)
    assert sent_to(send(program, tcp(flags=RST))) == real(REALS[6])


def test_udp_is_new_after_30_idle_seconds_and_tcp_never() -> None:
    program = balancer()
    program.memory.tables[-1] = {UDP_KEY: Connection(6, SECOND), KEY: Connection(6, 0)}
    assert sent_to(send(program, udp(), now=31 * SECOND)) == real(REALS[6])
    assert sent_to(send(program, udp(), now=61 * SECOND + 1)) != real(REALS[6])
    assert sent_to(send(program, tcp(), now=10**6 * SECOND)) == real(REALS[6])


def test_cpus_have_tables_of_their_own_or_share_one() -> None:
    program = balancer()
    program.maps.lru_cpus = frozenset({1})
    program.memory.tables[-1] = {KEY: Connection(6, 0)}
    assert [sent_to(send(program, tcp(), cpu=cpu)) == real(REALS[6]) for cpu in (0, 1, 2)] == [True, False, True]
    assert program.total.published()["stats[515]"] == [2, 0]


def test_misses_of_one_vip_are_counted_by_real() -> None:
    program = balancer()
    program.maps.vip_of_misses = VipKey(KEY.dst, 80, TCP)
    program.maps.rings[0] = [2] * 65_537
    for packet in (tcp(), tcp(), tcp(sport=2), udp()):
        send(program, packet)
    assert program.total.fields == {"lru_miss_stats[2]": 2}


@pytest.mark.parametrize(("number", "dropped"), [(0, [0, 1]), (MAX_REALS, [1, 0])])
def test_slots_without_a_real(number: int, dropped: list[int]) -> None:
    program = balancer()
    program.maps.rings[0] = [number] * 65_537
    step = send(program, tcp())
    assert (step.verdict, step.counters.published()["stats[521]"]) == (Verdict.DROP, dropped)
    assert step.counters.published()["stats[512]"] == [1, 0]


def test_tunnels_to_unknown_addresses_pass_when_strict() -> None:
    packet = frames.gue(CLIENT[6], VIP[6], 6080, tcp())
    for strict, frame in ((True, frames.ethernet(packet)), (False, None)):
        step = send(balancer({"inline_decap_gue": True, "strict_decap": strict}), packet)
        assert step.verdict is Verdict.PASS
        assert (step.frame == frame) == strict
    own = frames.gue(CLIENT[6], OWN[6], 6080, tcp())
    step = send(balancer({"inline_decap_gue": True, "strict_decap": True}), own)
    assert step.counters.published()["decap_vip_stats[0]"] == [1, 0]


@pytest.mark.parametrize(("depth", "verdict"), [(33, Verdict.TX), (34, Verdict.PASS)])
def test_tunnels_in_tunnels_are_taken_off_so_often(depth: int, verdict: Verdict) -> None:
    program = balancer({"inline_decap_ipip": True, "max_frame": 9000})
    program.maps.decap_addresses[OWN[4], 4] = 0
    packet = tcp()
    for _ in range(depth):
        packet = frames.ipip(CLIENT[4], OWN[4][:4], packet)
    assert send(program, packet).verdict is verdict


@pytest.mark.parametrize("tags", [((0x8100, 7),), ((0x88A8, 7), (0x8100, 8))])
@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_vlan_tags_stay(tags: tuple[tuple[int, int], ...], encapsulation: str) -> None:
    program = balancer({"vlan": True, "encapsulation": encapsulation})
    plain, size = send(program, tcp()).frame, 4 * len(tags)
    frame = frames.ethernet(tcp(), tags)
    tagged = program.step(frame).frame
    assert (tagged[:12] + tagged[12 + size :], tagged[12 : 12 + size]) == (plain, frame[12 : 12 + size])
    program.features = replace(program.features, vlan=False)
    assert program.step(frame).verdict is Verdict.PASS


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_frame_of_the_longest_size_may_have_tags_besides(size: int) -> None:
    packet = udp(payload=bytes(1472 + size))
    program = balancer({"vlan": True})
    assert send(program, packet).verdict is (Verdict.DROP if size else Verdict.TX)
    assert program.step(frames.ethernet(packet, ((0x8100, 7),))).verdict is (Verdict.DROP if size else Verdict.TX)


@pytest.mark.parametrize(("family", "at"), [(4, 40), (6, 60)])
def test_the_client_is_told_the_mtu(family: int, at: int) -> None:
    for mtu in (1280, 1500):
        headers = 28 if family == 4 else 48
        program = balancer({"too_big": True, "too_big_mtu": mtu, "max_frame": 14 + mtu})
        assert sent_to(send(program, udp(family, bytes(mtu - headers))))
        step = send(program, udp(family, bytes(mtu - headers + 1)))
        assert (step.verdict, int.from_bytes(step.frame[at : at + 2], "big")) == (Verdict.TX, mtu)


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
@pytest.mark.parametrize("packet", [tcp(), udp(), tcp(6), udp(6), error(answer()), error(answer(6))])
def test_what_a_real_takes_off_is_what_came(packet: bytes, encapsulation: str) -> None:
    step = send(balancer({"encapsulation": encapsulation}), packet)
    real_program = Decap(Features(inline_decap_gue=encapsulation == "gue"))
    verdict, frame, counters = real_program.step(step.frame)
    assert (verdict, frame[14:]) == (Verdict.PASS, packet)
    assert counters.fields["decap_counters.total"] == 1


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
@pytest.mark.parametrize("family", [4, 6])
def test_all_fragments_of_a_datagram_go_to_one_real(family: int, encapsulation: str) -> None:
    program = balancer({"fragments": True, "encapsulation": encapsulation})
    bits = (0x2000, 0x2010, 0x0020) if family == 4 else (1, 0x101, 0x200)
    steps = [send(program, frames.fragment(udp(family, sport=sport), each)) for sport in (1, 2) for each in bits]
    assert len({sent_to(step) for step in steps}) == 1
    assert program.memory.tables == {}
    other = frames.fragment(tcp(family, vip=CLIENT[family]), bits[0])
    assert send(program, other).verdict is Verdict.PASS
    assert send(balancer(), frames.fragment(udp(family), bits[0])).verdict is Verdict.DROP


def test_probes_are_matched_by_address_too() -> None:
    frame = frames.ethernet(tcp())
    program = Healthcheck(
        Features(healthcheck_dst_match=True, healthcheck_src_match=True),
        by_source={(CLIENT[4].ljust(16, b"\0"), 31337): real(REALS[1])},
        by_destination={(VIP[4].ljust(16, b"\0"), 0): real(REALS[2])},
    )
    assert program.step(frame, 0)[2].fields == {"hc_stats_map.pckts_dst_matched": 1, "hc_stats_map.pckts_processed": 1}
    program.by_destination.clear()
    assert program.step(frame, 0)[2].fields == {"hc_stats_map.pckts_src_matched": 1, "hc_stats_map.pckts_processed": 1}


def test_probes_that_cannot_be_sent_are_shot_and_keys_are_counted() -> None:
    program = Healthcheck(Features(), {1: real(REALS[1])}, keys={VipKey(VIP[4].ljust(16, b"\0"), 80, TCP): 7})
    arp = frames.LINK + b"\x08\x06" + bytes(28)
    assert program.step(arp, 1)[0] is Verdict.SHOT
    assert program.step(arp, 0)[0] is Verdict.UNSPEC
    assert program.step(frames.ethernet(frames.with_options(tcp(), b"\1" * 4)), 1)[0] is Verdict.REDIRECT
    assert program.step(frames.ethernet(tcp()), 1)[2].fields["per_hckey_stats[7]"] == 1


@pytest.mark.parametrize("check", [0xF7FF, 0xF800, 0xFFFF, 0x0000, 0x0100, 0x00FF])
@pytest.mark.parametrize("family", [4, 6])
def test_echo_replies_have_right_checksums(family: int, check: int) -> None:
    plain = frames.icmp(CLIENT[family], VIP[family], 8 if family == 4 else 128, 0, 0, b"\0\0")
    at = 20 if family == 4 else 40
    rest = struct.unpack(">H", plain[at + 2 : at + 4])[0] - check & 0xFFFF
    request = frames.icmp(CLIENT[family], VIP[family], 8 if family == 4 else 128, 0, 0, rest.to_bytes(2, "big"))
    step = send(balancer(), request)
    wanted = frames.icmp(VIP[family], CLIENT[family], 0 if family == 4 else 129, 0, 0, rest.to_bytes(2, "big"))
    came, right = (struct.unpack(">H", each[at + 2 : at + 4])[0] % 0xFFFF for each in (step.frame[14:], wanted))
    assert (step.verdict, came) == (Verdict.TX, right)
