# SPDX-License-Identifier: Apache-2.0
"""A chain under whatever may happen, in any order, against a model of what an operator would expect.

The real thing is all there: the emulated NIC's program and table, the dispatcher, both functions' programs, the engine,
the journal. Frames go through by test runs, the clock is the machine's. A kill ends the daemon's objects without its
cleanup; the next start finds what it has left.

The model knows entries and nothing else: no marks, no rules, no NIC.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.api.rules import RuleBatch
from nfcore.errors import ConfigError
from nfcore.kernel import remove_bpffs
from nfcore.plugins.flow_actions.entries import parse_orders
from nfcore.plugins.flow_actions.maps import remove_pins
from nfcore.plugins.softnic.backend import SoftnicBackend
from tests.isolation import on_one_cpu
from tests.kernel.softnic.pins import Pins, wire_of

from .in_process import CONFIG, Daemon

SOURCES = {4: ("198.18.1.1", "198.18.1.2", "198.18.2.1"), 6: ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1")}
DESTINATIONS = {4: ("198.18.10.1", "198.18.10.9"), 6: ("2001:db8:10::1", "2001:db8:10::9")}
NAMES = [f"entry{number}" for number in range(6)]
TOML_NAMES = ["first", "second"]
ACTIONS: tuple[dict[str, Any], ...] = (
    {"action": "drop"},
    {"action": "pass"},
    {"action": "count"},
    {"action": "set_dscp", "dscp": 46},
    {"action": "set_dscp", "dscp": 10},
)


@dataclass(frozen=True)
class Packet:
    """A frame of the population."""

    family: int
    src: str
    dst: str
    proto: str
    sport: int
    dport: int

    def frame(self, tos: int = 0) -> bytes:
        ends = {"src": self.src, "dst": self.dst}
        ip = IP(tos=tos, **ends) if self.family == 4 else IPv6(tc=tos, **ends)
        ports = {"sport": self.sport, "dport": self.dport}
        l4 = TCP(flags="A", **ports) if self.proto == "tcp" else UDP(**ports)
        return bytes(Ether(src="02:00:5e:00:00:fe", dst="02:00:5e:00:00:01") / ip / l4 / Raw(b"x" * 32))

    @property
    def is_balanced(self) -> bool:
        return self.dst == DESTINATIONS[self.family][0] and self.proto == "tcp" and self.dport == 80


@dataclass
class Entry:
    """An entry of the model."""

    match: dict[str, Any]
    action: dict[str, Any]
    priority: int
    ends: float
    packets: int = 0
    of_toml: bool = False

    @property
    def family(self) -> int:
        return int(self.match["family"])

    def bits(self, end: str) -> int:
        text = self.match.get(end)
        return ip_network(text).prefixlen if text else 0

    @property
    def fixed(self) -> int:
        ports = sum(16 for key in ("sport", "dport") if key in self.match)
        return self.bits("src") + self.bits("dst") + ports + (8 if "proto" in self.match else 0)

    @property
    def rank(self) -> tuple[bool, int, int]:
        return self.is_exact, self.fixed, self.priority

    @property
    def is_exact(self) -> bool:
        return self.fixed == 2 * (32 if self.family == 4 else 128) + 40

    def has(self, packet: Packet) -> bool:
        if self.family != packet.family:
            return False
        for end in ("src", "dst"):
            if end in self.match and ip_address(getattr(packet, end)) not in ip_network(self.match[end]):
                return False
        return all(self.match[key] == getattr(packet, key) for key in ("sport", "dport", "proto") if key in self.match)

    def same_match(self, other: Entry) -> bool:
        return self.match == other.match

    def overlaps(self, other: Entry) -> bool:
        if self.family != other.family:
            return False
        ends = [end for end in ("src", "dst") if end in self.match and end in other.match]
        if not all(ip_network(self.match[end]).overlaps(ip_network(other.match[end])) for end in ends):
            return False
        both = [key for key in ("sport", "dport", "proto") if key in self.match and key in other.match]
        return all(self.match[key] == other.match[key] for key in both)

    def clashes(self, other: Entry) -> bool:
        if self.same_match(other):
            return True
        tie = self.fixed == other.fixed and self.priority == other.priority
        return tie and not self.is_exact and self.overlaps(other)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    family = draw(st.sampled_from((4, 6)))
    src, dst = draw(st.sampled_from(SOURCES[family])), draw(st.sampled_from(DESTINATIONS[family]))
    return Packet(family, src, dst, draw(st.sampled_from(("tcp", "udp"))), 4000, draw(st.sampled_from((80, 81))))


@st.composite
def matches(draw: st.DrawFn) -> dict[str, Any]:
    family = draw(st.sampled_from((4, 6)))
    src, dst = draw(st.sampled_from(SOURCES[family])), draw(st.sampled_from(DESTINATIONS[family]))
    network = str(ip_network(f"{src}/{24 if family == 4 else 48}", strict=False))
    exact = {"src": src, "dst": dst, "sport": 4000, "dport": 80, "proto": "tcp"}
    match = draw(
        st.sampled_from(
            [
                exact,
                exact,
                {"src": src},
                {"src": network},
                {"src": network, "dport": 80, "proto": "tcp"},
                {"dst": dst},
                {"dst": dst, "proto": "udp"},
                {"src": network, "dst": dst},
                {},
            ]
        )
    )
    return {**match, "family": family}


def written(name: str, entry: Entry) -> dict[str, Any]:
    """An entry as an application or the TOML has it."""
    found = {"name": name, **entry.match, **entry.action, "priority": entry.priority}
    if entry.match.keys() & {"src", "dst"}:
        del found["family"]
    return found


class LivesOfEntries(RuleBasedStateMachine):
    """dest-id."""

    strategy = "dest-id"

    @initialize(rules=st.sampled_from([1, 3, 64]))
    def begin(self, rules: int) -> None:
        # The next run reads the journal by the real clock, before the machine's is in its place.
        self.now = time.time()
        self.entries: dict[str, Entry] = {}
        self.counters: list[set[str]] = []
        """Of each packet since the last comparison, which entries may have counted it."""
        self.folder = Path(tempfile.mkdtemp(prefix="nfcore-machine-"))
        self.stack = ExitStack()
        self.stack.enter_context(on_one_cpu())
        self.stack.callback(shutil.rmtree, self.folder)
        self.pins = Pins(self.folder / "nic")
        self.stack.callback(remove_bpffs, self.folder / "nic")
        self.pins.make(rules)
        self.stack.callback(self.pins.remove)
        self.wire = self.stack.enter_context(wire_of(self.pins))
        self.write_toml([])
        self.begin_run()

    def begin_run(self) -> None:
        self.daemon = Daemon(self.folder, lambda: self.now)
        self.daemon.start()
        self.daemon.turn()

    def write_toml(self, names: list[str]) -> None:
        """Write the TOML with these entries of the model."""
        tables = []
        for name in names:
            keys = written(name, self.entries[name])
            tables.append(
                "[[flow_actions.flows]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items())
            )
        text = CONFIG.format(folder=self.folder, strategy=self.strategy, flows="\n".join(tables))
        (self.folder / "nf.toml").write_text(text)

    # What may happen

    @rule(
        name=st.sampled_from(NAMES),
        match=matches(),
        action=st.sampled_from(ACTIONS),
        priority=st.integers(0, 2),
        life=st.sampled_from([None, None, 5.0, 30.0]),
    )
    def add(self, name: str, match: dict[str, Any], action: dict[str, Any], priority: int, life: float | None) -> None:
        ends = self.now + life if life else float("inf")
        entry = Entry(match, action, priority, ends)
        raw = written(name, entry) | ({"ttl": f"{life:g}s"} if life else {})
        self.expire()
        may = name not in self.entries and not any(entry.clashes(other) for other in self.entries.values())
        try:
            self.daemon.orders.change(parse_orders([raw]))
        except ConfigError:
            assert not may, raw
            return
        assert may, raw
        self.entries[name] = entry
        self.daemon.turn()

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.expire()
        if name in self.entries:
            self.daemon.orders.change(parse_orders([]), [name])
            del self.entries[name]
            self.daemon.turn()

    @rule(packet=packets(), times=st.integers(1, 4))
    def send(self, packet: Packet, times: int) -> None:
        for _ in range(times):
            self.send_one(packet)

    @rule(packet=packets(), times=st.integers(1, 4))
    def send_and_turn(self, packet: Packet, times: int) -> None:
        for _ in range(times):
            self.send_one(packet)
            self.daemon.turn()

    @rule(seconds=st.sampled_from([0.2, 2.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.expire()
        self.daemon.turn()

    @rule(
        count=st.integers(0, 2),
        entries=st.tuples(matches(), matches()),
        actions=st.tuples(*[st.sampled_from(ACTIONS)] * 2),
    )
    def reload(self, count: int, entries: tuple[dict[str, Any], ...], actions: tuple[dict[str, Any], ...]) -> None:
        self.expire()
        before = {name: self.entries.pop(name) for name in TOML_NAMES if name in self.entries}
        wanted: dict[str, Entry] = {}
        for name, match, action in zip(TOML_NAMES[:count], entries, actions, strict=False):
            entry = Entry(match, action, 0, float("inf"), of_toml=True)
            if not any(entry.clashes(other) for other in [*self.entries.values(), *wanted.values()]):
                old = before.get(name)
                same = old is not None and (old.match, old.action) == (match, action)
                wanted[name] = replace(entry, packets=old.packets if same and old else 0)
        self.entries |= wanted
        self.write_toml(list(wanted))
        self.daemon.reload()
        self.daemon.turn()

    @rule()
    def kill(self) -> None:
        self.daemon.stack.close()
        self.begin_run()

    @rule(on=st.booleans())
    def switch(self, on: bool) -> None:
        self.daemon.engine.switch(on=on)
        self.daemon.turn()

    @rule()
    def wipe(self) -> None:
        """The NIC loses what it has counted with its rules: so the counters are read before."""
        self.counts()
        with self.backend() as nic:
            nic.remove(RuleBatch(np.ascontiguousarray(nic.dump()["rule"])))
        self.now += 10.0
        self.expire()
        self.daemon.turn()

    # What must hold

    def expire(self) -> None:
        self.daemon.orders.expire()
        self.entries = {name: entry for name, entry in self.entries.items() if entry.ends > self.now}
        self.daemon.turn()

    def winner(self, packet: Packet) -> Entry | None:
        found = [entry for entry in self.entries.values() if entry.has(packet)]
        return max(found, key=lambda entry: entry.rank, default=None)

    def send_one(self, packet: Packet) -> None:
        entry = self.winner(packet)
        tos = 0
        if entry is not None:
            tos = entry.action.get("dscp", 0) << 2
            self.counters.append(self.who_may_count(packet, entry))
        seen = self.wire(packet.frame(), 1)
        action = entry.action["action"] if entry is not None else "nothing"
        if seen.dropped:
            assert action == "drop", (packet, action)
            return
        (mark,) = seen.marks
        run = self.daemon.program.test_run(packet.frame(), metadata=struct.pack("=I", mark) if mark else b"")
        verdict = (
            "XDP_DROP" if action == "drop" else "XDP_TX" if packet.is_balanced and action != "pass" else "XDP_PASS"
        )
        assert run.verdict.name == verdict, (packet, action, run.verdict, mark)
        if verdict != "XDP_DROP":
            assert run.output.endswith(packet.frame(tos)[14:]), (packet, action, mark)

    def who_may_count(self, packet: Packet, winner: Entry) -> set[str]:
        """Names of the entries of which one counts a packet: the winner, or, where it drops, another that drops."""
        return {
            name
            for name, entry in self.entries.items()
            if entry is winner or (winner.action == entry.action == {"action": "drop"} and entry.has(packet))
        }

    def counts(self) -> dict[str, int]:
        """Packets of all entries, the NIC's counters just read."""
        done = self.daemon.context.services.read_counters()
        self.daemon.engine.tick()
        assert done()
        slots = self.daemon.orders.table.slots()
        facts = self.daemon.function.facts(slots)
        names = [self.daemon.orders.table.name_of(slot) for slot in slots.tolist()]
        return dict(zip(names, facts.packets.tolist(), strict=True))

    @precondition(lambda self: hasattr(self, "daemon"))
    @invariant()
    def every_packet_is_counted_once(self) -> None:
        self.expire()
        counted = self.counts()
        assert counted.keys() == self.entries.keys()
        new = Counter({name: counted[name] - entry.packets for name, entry in self.entries.items()})
        # Each packet is counted by one of those that may: first those of which only one may.
        for names in sorted(self.counters, key=len):
            new[max(names, key=lambda name: new[name])] -= 1
        assert not any(new.values()), (new, self.counters)
        self.counters.clear()
        for name, entry in self.entries.items():
            entry.packets = counted[name]

    def teardown(self) -> None:
        if hasattr(self, "daemon") and hasattr(self.daemon, "engine"):
            self.daemon.engine.remove_all()
            self.daemon.stack.close()
            with self.backend() as nic:
                assert len(nic.dump()) == 0
            list(remove_pins(self.folder / "pins"))
            self.stack.close()

    @contextmanager
    def backend(self) -> Iterator[SoftnicBackend]:
        opened = SoftnicBackend.open(self.folder / "nic", "nic")
        try:
            yield opened
        finally:
            opened.close()


class LivesOfEntriesByFlow(LivesOfEntries):
    """flow-id."""

    strategy = "flow-id"


def toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


SHORT = settings(
    max_examples=6, stateful_step_count=20, deadline=None, derandomize=True, phases=[Phase.generate]
)  # to shrink takes minutes
TestLivesOfEntries: Callable[..., Any] = LivesOfEntries.TestCase
TestLivesOfEntries.settings = SHORT  # type: ignore[attr-defined]
TestLivesOfEntriesByFlow: Callable[..., Any] = LivesOfEntriesByFlow.TestCase
TestLivesOfEntriesByFlow.settings = SHORT  # type: ignore[attr-defined]
