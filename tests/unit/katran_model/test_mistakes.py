# SPDX-License-Identifier: Apache-2.0
"""Where Katran errs: what it does, and what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.katran_model import frames
from tests.katran_model.balancer import Balancer, Step
from tests.katran_model.checksum import pseudo_header, words
from tests.katran_model.decap import Decap
from tests.katran_model.features import Features, Quirks
from tests.katran_model.hashing import flow_slot
from tests.katran_model.healthcheck import Healthcheck
from tests.katran_model.maps import MAX_REALS, Prefix, Vip, VipFlag
from tests.katran_model.packet import IPIP, TCP, UDP, Verdict
from tests.katran_model.suites import real

from .scene import CLIENT, OWN, REALS, SYN, VIP, answer, balancer, error, maps, send, sent_to, tcp, udp

GUE: dict[str, Any] = {"encapsulation": "gue", "inline_decap_gue": True, "inline_decap_ipip": True}


def both(name: str, **features: Any) -> tuple[Features, Features]:
    """Features with one mistake, and without."""
    right = Features(**features, quirks=Quirks())
    return replace(right, quirks=Quirks(**{name: True})), right


def shown(name: str, packet: bytes, flags: int = 0, **features: Any) -> tuple[Step, Step]:
    """What becomes of a packet with the mistake, and without."""
    wrong, right = (send(Balancer(each, maps(flags)), packet) for each in both(name, **features))
    return wrong, right


@pytest.mark.parametrize("quoted", [8, 12, 14, 19])
@pytest.mark.parametrize("family", [4, 6])
def test_errors_that_quote_8_bytes_of_tcp_go_to_the_real_of_the_flow(family: int, quoted: int) -> None:
    program = balancer()
    wanted = sent_to(send(program, tcp(family)))
    packet = error(answer(family)[: (20 if family == 4 else 40) + quoted])
    assert sent_to(send(program, packet)) == wanted
    wrong, _ = shown("tcp_errors_need_20_bytes", packet)
    assert wrong.verdict is Verdict.DROP


@pytest.mark.parametrize("size", [4, 12, 40])
def test_quoted_options_are_skipped(size: int) -> None:
    packet = error(frames.with_options(answer(), b"\1" * size))
    wrong, right = shown("quoted_options_drop", packet)
    assert (wrong.verdict, sent_to(right)) == (Verdict.DROP, sent_to(send(balancer(), tcp())))


def udp_sum(frame: bytes) -> int:
    """The sum over the outer UDP datagram of an untagged frame: 0xffff if its checksum is right."""
    packet = frame[14:]
    if packet[0] >> 4 == 4:
        return words(packet[20:]) + pseudo_header(packet[12:16], packet[16:20], len(packet) - 20, UDP)
    return words(packet[40:]) + pseudo_header(packet[8:24], packet[24:40], len(packet) - 40, UDP)


@pytest.mark.parametrize("packet", [tcp(), udp(), tcp(6), udp(6), error(answer()), error(answer(6))])
def test_the_outer_checksum_of_gue_is_right(packet: bytes) -> None:
    _, right = shown("gue_checksum", packet, encapsulation="gue")
    assert udp_sum(right.frame) % 0xFFFF == 0


@pytest.mark.parametrize("packet", [udp(summed=False), error(answer())])
def test_a_checksum_made_of_none_is_wrong(packet: bytes) -> None:
    wrong, _ = shown("gue_checksum", packet, encapsulation="gue")
    assert udp_sum(wrong.frame) % 0xFFFF


@pytest.mark.parametrize("family", [4, 6])
def test_udp_without_checksum_has_none_outside(family: int) -> None:
    _, right = shown("gue_checksum", udp(family, summed=False), encapsulation="gue")
    at = 14 + (20 if family == 4 else 40) + 6
    assert right.frame[at : at + 2] == b"\0\0"


@pytest.mark.parametrize("packet", [tcp(), udp()])
def test_a_flow_of_a_dport_only_vip_is_found_again(packet: bytes) -> None:
    for features, misses in zip(both("dport_only_forgets"), (2, 1), strict=True):
        program = Balancer(features, maps(VipFlag.HASH_DPORT_ONLY))
        assert send(program, packet).frame == send(program, packet).frame
        assert program.total.published()["stats[512]"] == [2, misses]


def test_an_id_of_an_unknown_real_is_dropped_by_stable_routing() -> None:
    program = balancer({"udp_stable_routing": True}, VipFlag.UDP_STABLE_ROUTING)
    program.maps.server_ids[9] = MAX_REALS
    packet = udp(payload=b"\x52\0\0\x09rest")
    assert send(program, packet).verdict is Verdict.DROP
    program.features = replace(program.features, quirks=Quirks(stable_unknown_real_goes_on=True))
    assert send(program, packet).verdict is Verdict.TX
    assert program.total.fields["stable_rt_stats.cid_unknown_real_dropped"] == 2


def tunnel(family: int, inner: bytes, gue: bool = False) -> bytes:
    """A packet in a tunnel to this balancer's address."""
    src, dst = CLIENT[family], OWN[family][: len(CLIENT[family])]
    return frames.gue(src, dst, 6080, inner) if gue else frames.ipip(src, dst, inner)


def test_ipip_is_counted_by_its_outer_header() -> None:
    wrong, right = shown("ipip_decap_counts_as_v6", tunnel(4, tcp()), **GUE)
    assert (wrong.counters.published()["stats[522]"], right.counters.published()["stats[522]"]) == ([0, 1], [1, 0])


def test_20_bytes_are_taken_off_ipv6_in_ipv4() -> None:
    wrong, right = shown("six_in_four_takes_40", tunnel(4, tcp(6)), **GUE)
    assert right.frame[14:21] + right.frame[22:] == tcp(6)[:7] + tcp(6)[8:]
    assert len(wrong.frame) == len(right.frame) - 20


@pytest.mark.parametrize("family", [4, 6])
def test_an_echo_request_in_gue_is_passed_as_it_came(family: int) -> None:
    request = frames.icmp(CLIENT[family], VIP[family], 8 if family == 4 else 128, 0, 7, b"payload")
    wrong, right = shown("echo_in_decap", tunnel(6, request, gue=True), **GUE)
    kind = 34 if family == 4 else 54
    assert (right.frame[kind], wrong.frame[kind]) == (request[kind - 14], 0 if family == 4 else 129)


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_whose_time_is_over_is_dropped(ttl: int) -> None:
    inner = tcp()[:8] + bytes([ttl]) + tcp()[9:]
    wrong, right = shown("ttl_0_wraps", tunnel(6, inner, gue=True), **GUE)
    assert right.verdict is Verdict.DROP
    assert (wrong.verdict, wrong.frame[22]) == ((Verdict.PASS, 255) if ttl == 0 else (Verdict.DROP, 0))


def test_ipv6_in_gue_over_ipv4_stays_ipv6() -> None:
    wrong, right = shown("inner_version_unchecked", tunnel(4, tcp(6), gue=True), **GUE)
    assert (wrong.frame[12:14], right.frame[12:14]) == (b"\x08\x00", b"\x86\xdd")


def test_gue_of_another_variant_is_left_alone_and_a_lie_is_dropped() -> None:
    other = tunnel(6, b"\0" * 60, gue=True)
    wrong, right = shown("inner_version_unchecked", other, **GUE)
    assert (len(wrong.frame), right.frame) == (14 + 60, frames.ethernet(other))
    lie = frames.ip(CLIENT[4], OWN[4][:4], IPIP, tcp(6))
    wrong, right = shown("inner_version_unchecked", lie, **GUE)
    assert (wrong.verdict, right.verdict) == (Verdict.PASS, Verdict.DROP)


@pytest.mark.parametrize("family", [4, 6])
def test_echo_requests_and_broken_errors_of_nobody_are_the_stacks(family: int) -> None:
    kind, error_kind = (8, 3) if family == 4 else (128, 1)
    for dst, wanted in ((VIP[family], (Verdict.TX, Verdict.DROP)), (CLIENT[family], (Verdict.PASS, Verdict.PASS))):
        echo = frames.icmp(CLIENT[family], dst, kind, 0)
        broken = frames.icmp(CLIENT[family], dst, error_kind, 0, 0, answer(family)[:19])
        wrong, right = shown("echo_for_all", echo)
        assert (wrong.verdict, right.verdict) == (Verdict.TX, wanted[0])
        wrong, right = shown("unfit_dropped_for_all", broken)
        assert (wrong.verdict, right.verdict) == (Verdict.DROP, wanted[1])


def test_the_program_for_reals_drops_unfit_tunnels_alone() -> None:
    for packet, wanted in (
        (frames.fragment(udp(), 0x2000), (Verdict.DROP, Verdict.PASS)),
        (frames.with_options(udp(), b"\1" * 4), (Verdict.DROP, Verdict.PASS)),
        (frames.fragment(tunnel(4, udp()), 0x2000), (Verdict.DROP, Verdict.DROP)),
        (frames.fragment(tunnel(6, udp(), gue=True), 1), (Verdict.DROP, Verdict.DROP)),
    ):
        both_ways = both("decap_drops_all_unfit", inline_decap_gue=True)
        assert tuple(Decap(features).step(frames.ethernet(packet))[0] for features in both_ways) == wanted


def test_ids_are_counted_in_ipip_too() -> None:
    inner = tcp(options=b"\xb7\6\1\0\0\0\0\0")
    for features, count in zip(both("ids_in_gue_only", decap_tcp_server_ids=True), (0, 1), strict=True):
        _, _, counters = Decap(features, own_id=7).step(frames.ethernet(tunnel(4, inner)))
        assert counters.fields["decap_counters.tpr_misrouted"] == count


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_an_ipv6_packet_for_an_ipv4_real(encapsulation: str) -> None:
    steps = []
    for features in both("v6_to_v4_real", encapsulation=encapsulation):
        program = Balancer(features, maps())
        program.maps.rings[2] = [1] * 65_537
        steps.append(send(program, tcp(6)))
    assert sent_to(steps[0]) == real(REALS[1])._replace(v6=True)
    if encapsulation == "gue":
        assert (sent_to(steps[1]), udp_sum(steps[1].frame) % 0xFFFF) == (real(REALS[1]), 0)
    else:
        assert (steps[1].verdict, steps[1].counters.published()["stats[519]"]) == (Verdict.DROP, [0, 1])


@pytest.mark.parametrize("encapsulation", ["ipip", "gue"])
def test_a_probe_has_the_ethertype_of_its_outer_header(encapsulation: str) -> None:
    made = [
        Healthcheck(features, {1: real(REALS[1])}).step(frames.ethernet(tcp(6)), 1)[1]
        for features in both("healthcheck_keeps_ethertype", encapsulation=encapsulation)
    ]
    assert [frame[12:15] for frame in made] == [b"\x86\xdd\x45", b"\x08\x00\x45"]


def test_the_port_of_a_prefix_vip_does_not_count() -> None:
    address = bytes.fromhex("fc00000900000000000000000000abcd")
    for features, dport in zip(both("exact_prefix_port"), (443, 0), strict=True):
        program = Balancer(features, maps())
        program.maps.prefix_vips[Prefix.of(ip_network("fc00:9::/32")), 443, TCP] = Vip(0, 2, 6)
        for sport in range(20):
            number = program.maps.rings[2][flow_slot(6, CLIENT[6], sport, dport)]
            assert sent_to(send(program, tcp(6, sport=sport, dport=443, vip=address))) == real(REALS[number])


def test_a_hidden_source_port_is_not_in_the_outer_header() -> None:
    wrong, right = shown("outer_sport_unhidden", tcp(), VipFlag.HASH_NO_SRC_PORT)
    assert right.frame[26:30] == bytes([172, 16]) + CLIENT[4][2:4]
    assert wrong.frame[26:30] != right.frame[26:30]


def test_a_packet_goes_to_a_vip_of_its_family() -> None:
    twin = VIP[4] + bytes(12)
    wrong, right = shown("families_share_keys", tcp(6, vip=twin))
    assert ("stats", 0) in wrong.counters.pairs
    assert right.verdict is Verdict.PASS
    program = balancer({"prefix_vips_v4": True})
    program.maps.prefix_vips[Prefix.of(ip_network("2001:db8::/32")), 80, TCP] = Vip(0, 2, 6)
    program.maps.prefix_vips[Prefix.of(ip_network("198.18.0.0/15")), 80, TCP] = Vip(0, 0, 4)
    verdicts = [
        send(program, tcp(4 if len(address) == 4 else 6, vip=address)).verdict
        for address in map(bytes.fromhex, ("20010db8", "c6120001", "c612" + "00" * 14, "20010db8" + "00" * 12))
    ]
    assert verdicts == [Verdict.PASS, Verdict.TX, Verdict.PASS, Verdict.TX]


@pytest.mark.parametrize("flags", [0, VipFlag.HASH_NO_SRC_PORT])
def test_a_new_connection_moves_no_other_whose_hash_is_the_same(flags: int) -> None:
    new = tcp(flags=SYN, sport=1) if flags else tcp(flags=SYN, dport=81)
    for features, moved in zip(both("equal_hashes_share_entry"), (True, False), strict=True):
        program = Balancer(features, maps(flags))
        if not flags:
            program.maps.vips = {key._replace(port=0): vip for key, vip in program.maps.vips.items()}
        program.maps.rings[0] = [1] * 65_537
        send(program, tcp())
        program.maps.rings[0] = [2] * 65_537
        assert sent_to(send(program, new)) == real(REALS[2])
        assert (sent_to(send(program, tcp())) == real(REALS[2])) == moved


UNFIT: dict[str, Callable[[bytes], bytes]] = {
    "options": lambda packet: frames.with_options(packet, b"\1" * 4),
    "first fragment": lambda packet: frames.fragment(packet, 0x2000 if packet[0] >> 4 == 4 else 1),
    "later fragment": lambda packet: frames.fragment(packet, 0x0010 if packet[0] >> 4 == 4 else 0x81),
    "cut off behind the ports": lambda packet: packet[: (20 if packet[0] >> 4 == 4 else 40) + 7],
    "cut off before the ports": lambda packet: packet[: (20 if packet[0] >> 4 == 4 else 40) + 3],
}
WITHOUT_PORTS = {"first fragment", "later fragment", "cut off before the ports"}


@pytest.mark.parametrize(
    ("what", "family"), [(what, family) for what in UNFIT for family in (4, 6) if (what, family) != ("options", 6)]
)
def test_only_what_is_for_a_vip_is_dropped(what: str, family: int) -> None:
    for packet, for_vip in (
        (tcp(family), True),
        (tcp(family, dport=81), what in WITHOUT_PORTS),
        (tcp(family, vip=CLIENT[family]), False),
    ):
        wrong, right = shown("unfit_dropped_for_all", UNFIT[what](packet))
        assert (wrong.verdict, right.verdict) == (Verdict.DROP, Verdict.DROP if for_vip else Verdict.PASS)


def test_what_is_too_big_is_counted_when_the_client_is_told() -> None:
    packet = udp(payload=bytes(1500))
    wrong, right = shown("too_big_counts", packet)
    assert wrong.counters.published()["stats[516]"] == [1, 0]
    assert "stats[516]" not in right.counters.published()
    told, _ = shown("too_big_counts", packet, too_big=True)
    assert told.counters.published()["stats[516]"] == [1, 0]


def test_a_miss_is_a_new_flow_that_has_got_a_real() -> None:
    for features, counted in zip(both("misses_before_ring"), ([1, 1], [1, 0]), strict=True):
        program = Balancer(features, maps())
        program.maps.rings.clear()
        assert send(program, tcp()).counters.published()["stats[512]"] == counted


def test_each_mistake_is_shown_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [field.name for field in fields(Quirks) if field.name not in source] == []
