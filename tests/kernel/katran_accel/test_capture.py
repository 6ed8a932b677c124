# SPDX-License-Identifier: Apache-2.0
"""Samples of packets, as the daemon's methods give them from the real program."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from nfcore.api.flows import FLOW_KEY
from nfcore.daemon.chain import map_specs
from nfcore.errors import ConfigError, HostError
from nfcore.kernel import Map, PerfReader, TestRun, compile_program
from nfcore.kernel.syscall import object_info
from nfcore.plugins.katran_accel.capture.layouts import EVENT_METADATA, SAMPLE_BYTES
from nfcore.plugins.katran_accel.capture.reasons import REASONS
from nfcore.plugins.katran_accel.layouts import CTL_INTROSPECTION
from tests.paths import ROOT

from .world import CLIENT, NIC, World, forget_connections, open_world, sent_to, set_ring, tcp, udp

ON = "capture = true"
LIMIT = 700_000
"""Instructions that the verifier may follow; the kernel ends at a million."""
VERIFIED = 216
"""Offset of `verified_insns` in struct bpf_prog_info."""
FLOW = tcp("198.18.1.2", "198.18.10.1")
FLOW6 = udp("2001:db8:1::2", "2001:db8:10::2")
Sends = Callable[[World], list[TestRun]]


def capture(world: World, send: Sends, **wanted: Any) -> tuple[dict[str, Any], list[TestRun]]:
    """Let packets pass while a capture runs; the last answer, and what became of them."""
    methods = world.context.services.methods

    async def run() -> tuple[dict[str, Any], list[TestRun]]:
        running = methods["capture.start"](wanted)["capture"]
        runs = send(world)
        return methods["capture.stop"]({"capture": running}), runs

    return asyncio.run(run())


def once(frame: bytes) -> Sends:
    return lambda world: [world.send(frame)]


def by_mark(world: World) -> list[TestRun]:
    return [world.send(FLOW, world.mark_of(FLOW))]


def without_its_mark(world: World) -> list[TestRun]:
    forget_connections(world)
    return [world.send(FLOW)]


def to_no_real(world: World) -> list[TestRun]:
    set_ring(world, 0, 0)
    return [world.send(tcp("198.18.1.2", "198.18.10.1", sport=9))]


def to_no_mac(world: World) -> list[TestRun]:
    reals = world.balancer.maps["reals"].read_array()
    reals["next_hop"] = 5
    world.balancer.maps["reals"].write_array(0, reals)
    return [world.send(FLOW6)]


def other(packet: IP | IPv6 | ARP) -> bytes:
    return bytes(Ether(src=CLIENT, dst=NIC) / packet)


TO_VIP, TO_VIP6 = IP(dst="198.18.10.1"), IPv6(dst="2001:db8:10::1")
FIRST, SECOND, SIXTH = "198.18.10.1:80/tcp", "198.18.10.2:53/udp", "[2001:db8:10::2]:53/udp"
CASES: dict[str, tuple[Sends, str, str | None]] = {
    "by_mark": (by_mark, "tx", FIRST),
    "known": (once(FLOW), "tx", FIRST),
    "by_rule": (without_its_mark, "tx", FIRST),
    "new": (once(udp("198.18.1.2", "198.18.10.2")), "tx", SECOND),
    "new v6": (once(FLOW6), "tx", SIXTH),
    "other_protocol ARP": (once(other(ARP())), "pass", None),
    "echo": (once(other(TO_VIP / ICMP())), "tx", None),
    "echo v6": (once(other(TO_VIP6 / ICMPv6EchoRequest())), "tx", None),
    "other_protocol ICMP": (once(other(TO_VIP / ICMP(type=13))), "pass", None),
    "not_a_vip": (once(tcp("198.18.1.2", "198.18.10.1", dport=81)), "pass", None),
    "not_a_vip fragment": (once(other(IP(dst="198.18.9.9", frag=3, proto=6) / Raw(bytes(30)))), "pass", None),
    "malformed": (once(other(IP(dst="198.18.10.1", frag=3, proto=6) / Raw(bytes(30)))), "drop", None),
    "malformed v6": (once(other(TO_VIP6 / IPv6ExtHdrFragment(nh=6) / Raw(bytes(30)))), "drop", None),
    "too_big": (once(tcp("198.18.1.2", "198.18.10.1", size=1461)), "drop", FIRST),
    "no_real": (to_no_real, "drop", FIRST),
    "no_next_hop": (to_no_mac, "drop", SIXTH),
}


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_each_packet_comes_with_its_verdict_and_reason(tmp_path: Path, strategy: str) -> None:
    with open_world(tmp_path, strategy=strategy, katran=ON) as world:
        world.offload(FLOW)
        for case, (send, verdict, vip) in CASES.items():
            begun = time.time_ns()
            answer, (run,) = capture(world, send, snaplen=SAMPLE_BYTES)
            (packet,) = answer["packets"]
            assert (packet["reason"], packet["verdict"], packet["vip"]) == (case.split()[0], verdict, vip), case
            assert run.verdict.name == f"XDP_{verdict.upper()}"
            assert base64.b64decode(packet["data"]) == run.output[:SAMPLE_BYTES]
            assert packet["length"] == len(run.output)
            outer = 0 if verdict != "tx" or vip is None else 40 if vip == SIXTH else 20
            assert packet["arrived_length"] == len(run.output) - outer
            if verdict == "tx" and vip is not None:
                assert packet["real"] == sent_to(run)
            assert (packet["cpu"], packet["queue"], packet["interface"]) == (world.cpu, 0, "lo")
            # The two clocks are not read at one instant.
            assert begun - 10**7 <= packet["time_ns"] <= time.time_ns() + 10**7
            assert (answer["fitting"], answer["lost"]) == (1, 0)


OF_FEATURES = """
[[katran_accel.vips]]
address = "198.18.10.7"
port = 80
protocol = "tcp"
flags = ["src_routing", "global_lru"]
reals = [{ address = "198.18.20.11" }]
[[katran_accel.vips]]
address = "198.18.10.8"
port = 443
protocol = "udp"
flags = ["quic"]
reals = [{ address = "198.18.20.11" }]
[[katran_accel.vips]]
address = "2001:db8:10::1"
port = 80
protocol = "tcp"
reals = [{ address = "2001:db8:20::11" }]
"""
WITH_FEATURES = """
capture = true
tcp_server_ids = true
server_ids = [{ id = 7, real = "198.18.20.12" }]
source_routes = [{ prefix = "198.18.1.0/24", real = "198.18.20.13" }]
fragments = "hash-addresses"
source_v4 = "198.18.30.1"
decap.ipip = true
decap.strict = true
"""
ID = [(0xB7, (7).to_bytes(4, "little"))]
INNER = IP(src="198.18.1.9", dst="198.18.9.9") / UDP(sport=1, dport=2)
QUIC_ID = b"\x40" + b"\x80" + (9).to_bytes(3, "big") + bytes(4)


def in_global_lru(world: World) -> list[TestRun]:
    key = np.zeros(1, FLOW_KEY)
    key["src"][0, :4], key["dst"][0, :4] = [198, 18, 9, 2], [198, 18, 10, 7]
    key["sport"], key["dport"], key["proto"] = 40_000, 80, 6
    world.balancer.maps["fallback_glru"].update(key[0], world.balancer.inventory.reals[ip_address("198.18.20.11")])
    return [world.send(tcp("198.18.9.2", "198.18.10.7"))]


def with_gone_real(world: World) -> list[TestRun]:
    world.balancer.maps["server_id_map"].update(9, 4000)
    return [world.send(other(IP(dst="198.18.10.8") / UDP(sport=1, dport=443) / Raw(QUIC_ID)))]


FEATURE_CASES: dict[str, tuple[Sends, str, str]] = {
    "server_id": (once(other(IP(dst="198.18.10.7") / TCP(dport=80, flags="A", options=ID))), "tx", "198.18.20.12"),
    "source_route": (once(tcp("198.18.1.2", "198.18.10.7", flags="S")), "tx", "198.18.20.13"),
    "global_lru": (in_global_lru, "tx", "198.18.20.11"),
    "fragment": (once(other(IP(dst="198.18.10.7", frag=3, proto=6) / Raw(bytes(30)))), "tx", "198.18.20.11"),
    "decapsulated": (once(other(IP(dst="198.18.30.1") / INNER)), "pass", ""),
    "other_tunnel": (once(other(IP(dst="198.18.30.2") / INNER)), "pass", ""),
    "ttl": (once(other(IP(dst="198.18.30.1") / IP(ttl=1, dst="198.18.9.9") / UDP())), "drop", ""),
    "unknown_id": (with_gone_real, "drop", ""),
    "family": (once(other(TO_VIP6 / TCP(dport=80, flags="A", options=ID))), "drop", "198.18.20.12"),
}


def test_packets_of_features_come_with_their_reason(tmp_path: Path) -> None:
    with open_world(tmp_path, vips=OF_FEATURES, katran=WITH_FEATURES) as world:
        for case, (send, verdict, real) in FEATURE_CASES.items():
            answer, (run,) = capture(world, send)
            (packet,) = answer["packets"]
            found = packet["reason"], packet["verdict"], packet["real"] or ""
            assert found == (case, verdict, real)
            assert run.verdict.name == f"XDP_{verdict.upper()}"


def test_every_reason_has_a_case() -> None:
    cases = {case.split()[0] for case in [*CASES, *FEATURE_CASES]}
    assert cases == REASONS.keys() - {"unknown", "not_addressed", "no_headroom"}


def test_a_packet_without_a_next_hop_names_its_real(tmp_path: Path) -> None:
    with open_world(tmp_path, katran=ON) as world:
        (packet,) = capture(world, to_no_mac)[0]["packets"]
        assert packet["real"] in ("2001:db8:20::11", "2001:db8:20::13")
        assert packet["why"] == "the MAC address to send to is not known"


def test_filters(tmp_path: Path) -> None:
    def send(world: World) -> list[TestRun]:
        frames = [tcp("198.18.1.2", "198.18.10.1", sport=sport) for sport in range(30)]
        frames += [FLOW6, tcp("198.18.1.2", "198.18.10.1", dport=81), other(ARP())]
        return [world.send(frame) for frame in frames]

    with open_world(tmp_path, katran=ON) as world:
        send(world)

        def seen(**wanted: Any) -> list[dict[str, Any]]:
            answer, _ = capture(world, send, **wanted)
            assert answer["fitting"] == len(answer["packets"])
            packets: list[dict[str, Any]] = answer["packets"]
            return packets

        assert len(seen()) == 33
        assert {packet["vip"] for packet in seen(vip="[2001:db8:10::2]:53/udp")} == {SIXTH}
        for text in (FIRST, "198.18.10.1:80", "198.18.10.1"):
            assert len(seen(vip=text)) == 30
        to_one = seen(real="198.18.20.11")
        assert 0 < len(to_one) < 30 and {packet["real"] for packet in to_one} == {"198.18.20.11"}
        assert [packet["reason"] for packet in seen(verdicts=["pass", "drop"])] == ["not_a_vip", "other_protocol"]
        assert [packet["verdict"] for packet in seen(reasons=["other_protocol"])] == ["pass"]
        assert seen(reasons=["other_protocol"], verdicts=["tx"]) == []
        assert seen(vip=FIRST, real="2001:db8:20::12") == []


def test_one_in_so_many_and_so_many_bytes(tmp_path: Path) -> None:
    with open_world(tmp_path, katran=ON) as world:
        answer, _ = capture(world, lambda world: [world.send(FLOW) for _ in range(10)], sample=4, snaplen=15)
        assert (len(answer["packets"]), answer["fitting"]) == (3, 10)
        assert {len(base64.b64decode(packet["data"])) for packet in answer["packets"]} == {15}


def test_frames_that_end_at_any_byte(tmp_path: Path) -> None:
    frame = tcp("2001:db8:1::2", "2001:db8:10::1", size=300)
    with open_world(tmp_path, katran=ON) as world:
        lengths = range(14, len(frame) + 1)
        answer, runs = capture(world, lambda world: [world.send(frame[:length]) for length in lengths], snaplen=256)
        assert [packet["arrived_length"] for packet in answer["packets"]] == list(lengths)
        assert [base64.b64decode(packet["data"]) for packet in answer["packets"]] == [run.output[:256] for run in runs]


def test_samples_that_find_no_room_are_counted(tmp_path: Path) -> None:
    with open_world(tmp_path, katran=ON) as world:
        set_ring(world, 0, 0)
        answer, _ = capture(world, lambda world: [world.balancer.program.test_run(FLOW, repeat=10_000)])
        assert answer["fitting"] == 10_000 and 3_000 < answer["lost"] < 4_000
        # What the capture before has left is not seen by the next one.
        answer, _ = capture(world, once(FLOW6))
        assert (len(answer["packets"]), answer["fitting"], answer["lost"]) == (1, 1, 0)


def test_nothing_is_sampled_when_no_capture_runs(tmp_path: Path) -> None:
    with open_world(tmp_path, katran=ON) as world:
        samples, counts = (world.balancer.maps[name] for name in ("hw_accel_samples", "hw_accel_captured"))
        assert capture(world, once(FLOW))[0]["fitting"] == 1
        world.send(FLOW)
        assert counts.read_array()["fitting"].sum() == 1
        # A reader that is gone does not move the end on.
        row = world.balancer.maps["hw_accel_capture"].read_array()
        row["until"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        world.balancer.maps["hw_accel_capture"].write_array(0, row)
        world.send(FLOW)
        assert counts.read_array()["fitting"].sum() == 1
        row["until"] += 60 * 10**9
        world.balancer.maps["hw_accel_capture"].write_array(0, row)
        world.send(FLOW)
        assert counts.read_array()["fitting"].sum() == 2
        assert samples.spec.max_entries >= 1 << 20


def test_mistakes_are_named(tmp_path: Path) -> None:
    two = '[[katran_accel.vips]]\naddress = "198.18.10.3"\nport = {}\nprotocol = "{}"\nreals = []\n'
    vips = two.format(80, "tcp") + two.format(80, "udp") + two.format(81, "tcp")
    with open_world(tmp_path, vips=vips, katran=ON) as world:
        start = world.context.services.methods["capture.start"]
        for wanted, message in (
            ({"vip": "198.18.10.9"}, "capture: vip: is '198.18.10.9'; the VIPs are: 198.18.10.3:80/tcp, 198.18.10.3"),
            ({"vip": "198.18.10.3"}, "which 3 VIPs have; name one of them: 198.18.10.3:80/tcp, 198.18.10.3:80/udp"),
            ({"vip": "198.18.10.3:80"}, "which 2 VIPs have"),
            ({"vip": 7}, "vip: is 7; the VIPs are"),
            ({"real": "198.18.20.1"}, "real: is '198.18.20.1'; the reals are: "),
            ({"real": "x"}, "real: is 'x'; the reals are: "),
            ({"reasons": ["tired"]}, "reasons: is 'tired'; should be one of unknown, by_mark, "),
            ({"verdicts": [["tx"]]}, r"verdicts: is \['tx'\]; should be one of drop, pass, tx"),
            ({"verdicts": "tx"}, "verdicts: is 'tx'; should be a list of words"),
            ({"sample": 0}, "sample: is 0; should be a number from 1 to 4,294,967,295"),
            ({"snaplen": 257}, "snaplen: is 257; should be a number from 1 to 256"),
            ({"snaplen": True}, "snaplen: is True"),
            ({"speed": 1}, "speed: is no parameter; there are: real, reasons, sample, snaplen, verdicts, vip"),
        ):
            with pytest.raises(ConfigError, match=message):
                start(wanted)
        services = world.context.services
        assert "capture.start" not in services.read_methods | services.order_methods
        stop = services.methods["capture.stop"]
        with pytest.raises(HostError, match="this capture has ended"):
            stop({"capture": ""})


def test_there_is_one_capture_at_a_time(tmp_path: Path) -> None:
    async def run(world: World) -> None:
        start, read, stop = (world.context.services.methods[f"capture.{name}"] for name in ("start", "read", "stop"))
        first = start({})["capture"]
        with pytest.raises(HostError, match="a capture is running, and there is one at a time"):
            start({})
        assert (await read({"capture": first}))["packets"] == []
        waiting = asyncio.ensure_future(read({"capture": first, "wait": 30}))
        await asyncio.sleep(0)
        world.send(FLOW)
        assert len((await waiting)["packets"]) == 1
        waiting = asyncio.ensure_future(read({"capture": first, "wait": 30}))
        await asyncio.sleep(0)
        stop({"capture": first})
        with pytest.raises(HostError, match="this capture has ended"):
            await waiting
        second = start({})["capture"]
        assert second != first
        with pytest.raises(HostError, match="this capture has ended"):
            await read({"capture": first})
        stop({"capture": second})

    with open_world(tmp_path, katran=ON) as world:
        asyncio.run(run(world))


def test_a_program_without_captures_has_nothing_of_them(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        assert not [name for name in world.balancer.maps.maps if "captur" in name or name == "hw_accel_samples"]
        assert "event_pipe" not in world.balancer.maps.maps
        with pytest.raises(HostError, match=r"set katran_accel\.capture = true and restart it"):
            world.context.services.methods["capture.start"]({})


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
@pytest.mark.parametrize("events", ["ringbuf", "perf"])
def test_the_verifier_is_far_from_its_limit(tmp_path: Path, strategy: str, events: str) -> None:
    offload = f'min_packets = 3\nevents = "{events}"'
    with open_world(tmp_path, strategy=strategy, offload=offload, katran=f"{ON}\nintrospection = true") as world:
        defines = {"MIN_PACKETS": 3, "POOL_SLOTS": 4096, "DEVICES": 1, "CARRIER_METADATA": 1, "CHAIN_NEXT": 1}
        defines |= {"EVENTS_RINGBUF" if events == "ringbuf" else "EVENTS_PERF": 1, "CAPTURE": 1, "INTROSPECTION": 1}
        defines |= {"MARK_IS_TARGET" if strategy == "dest-id" else "MARK_IS_FLOW": 1}
        chain = next(spec for spec in map_specs(2, 16) if spec.name == "chain_programs")
        with Map.create(chain) as programs:
            maps = {**world.balancer.maps.maps, "chain_programs": programs}
            source = ROOT / "bpf/balancer/balancer.c"
            with compile_program(source, "balancer_ingress", defines=defines, maps=maps) as program:
                info = object_info(program.fd, VERIFIED + 4)
                assert 0 < struct.unpack_from("=I", info, VERIFIED)[0] < LIMIT


CALLS = re.compile(r"^\s*(note_|capture|sample_)\w*\(.*\);\n", re.MULTILINE)
BECAUSE = re.compile(r"because\(&?packet, REASON_\w+, (XDP_\w+)\)")


def test_what_is_off_costs_no_instruction(tmp_path: Path) -> None:
    """The program is the same when each line that notes or samples something is taken out of the source."""
    shutil.copytree(ROOT / "bpf", tmp_path / "bpf")
    taken = 0
    for source in (tmp_path / "bpf/balancer").iterdir():
        if source.name in ("reason.h", "capture.h", "introspection.h"):
            continue
        text, calls = CALLS.subn("", source.read_text())
        text, reasons = BECAUSE.subn(r"\1", text)
        source.write_text(text)
        taken += calls + reasons
    assert taken > 15
    with open_world(tmp_path) as world:
        defines = {"MIN_PACKETS": 1, "POOL_SLOTS": 4096, "EVENTS_RINGBUF": 1, "MARK_IS_TARGET": 1, "DEVICES": 1}
        defines |= {"CARRIER_METADATA": 1}
        tags = []
        for folder in (ROOT / "bpf", tmp_path / "bpf"):
            source, maps = folder / "balancer/balancer.c", world.balancer.maps.maps
            with compile_program(source, "balancer_ingress", defines=defines, maps=maps, include_dirs=[folder]) as one:
                tags.append((one.tag, one.xlated_size))
        assert tags[0] == tags[1]


def event(reader: PerfReader) -> tuple[int, int, bytes] | None:
    """The only record of `event_pipe`, as published: event, length of the frame, its first bytes."""
    records = reader.read()
    if not len(records):
        return None
    (record,) = records
    meta = record["meta"]
    return int(meta["event"]), int(meta["frame_bytes"]), record["frame"].tobytes()[: int(meta["bytes"])]


def test_introspection_gives_the_published_samples(tmp_path: Path) -> None:
    syn = tcp("198.18.1.2", "198.18.10.1", flags="S", size=200)
    new, big = tcp("198.18.1.2", "198.18.10.1", size=200), udp("2001:db8:1::2", "2001:db8:10::2", size=1500)
    with open_world(tmp_path, katran='introspection = true\ntoo_big = "answer"') as world:
        pipe, ctl = world.balancer.maps["event_pipe"], world.balancer.maps["ctl_array"]
        with PerfReader(pipe, np.dtype([("meta", EVENT_METADATA), ("frame", "u1", (128,))])) as reader:

            def told(frame: bytes) -> tuple[int, int, bytes] | None:
                world.send(frame)
                return event(reader)

            assert told(new) == (0, len(new), new[:128])
            assert told(new) is None  # the connection table has it now
            assert told(syn) is None
            assert told(udp("198.18.1.2", "198.18.10.2", size=200)) is None
            assert told(big) == (1, len(big), big[:128])
            off = ctl.read_slice(CTL_INTROSPECTION, 1)
            assert off.tobytes() == (1).to_bytes(8, "little")
            off["mac"] = 0
            ctl.write_array(CTL_INTROSPECTION, off)
            assert told(big) is None
            off["pad"][0, 1] = 1  # the gate is a u64
            ctl.write_array(CTL_INTROSPECTION, off)
            assert told(big) == (1, len(big), big[:128])
        assert world.send(big).verdict.name == "XDP_TX"  # without a reader


def test_introspection_of_a_short_frame(tmp_path: Path) -> None:
    with open_world(tmp_path, katran="introspection = true") as world:
        record = np.dtype([("meta", EVENT_METADATA), ("frame", "u1", (len(FLOW),))])
        with PerfReader(world.balancer.maps["event_pipe"], record) as reader:
            world.send(FLOW)
            assert event(reader) == (0, len(FLOW), FLOW)
