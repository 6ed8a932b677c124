# SPDX-License-Identifier: Apache-2.0
"""Actions for flows: clients browse, others flood, and an application has the NIC drop the flood."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from nfcore.client import FlowClient, FlowStatus
from nfcore.plugins.softnic.backend import SoftnicBackend
from nfcore.plugins.softnic.layouts import NicCounter

from .counters import read_counters
from .events import Step, UnseenError
from .lab import CLIENT4, CLIENT6, VIP4, VIP6
from .proof import Prediction, Summary, address_kept, as_check, none_lost, right_real, summarise
from .stage import ROOT, Reader, Stage
from .traffic import TIMEOUT, Traffic, retransmitted
from .view import View
from .wire import Wire

CONFIG = ROOT / "examples" / "flows.toml"
APPLICATION = ROOT / "examples" / "flood_guard.py"

PREFERRED = ("198.18.1.5", "2001:db8:1::5")
"""The client whose packets get another DSCP."""
BROWSERS = (CLIENT4, CLIENT6, "198.18.1.3", "2001:db8:1::3", "198.18.1.4", "2001:db8:1::4", *PREFERRED)
FLOODERS = ("198.18.1.66", "198.18.1.67", "2001:db8:1::66", "2001:db8:1::67")
DSCP = 46

KEPT, LIFE, RATE = 32, 48, 300
"""Connections kept alive, requests on each, requests a second at most."""
FLOOD_RATE = 8_000
"""Packets a second at most, of all flooders."""
LIMIT = 500
"""Packets a second above which the application calls a source a flood. A browser sends a fifth of it, a flooder 2,000,
and fewer on a slow machine."""
FIRST_WAVE, SECOND_WAVE = 120_000, 16_000
"""Packets: the first wave ends as soon as the NIC drops it, the second is sent to its end."""
LOOK = 1.0
"""Seconds in which packets are counted, to show their rate."""
REQUESTS_EACH = 200
"""Requests that must be answered while something is shown."""


class Flows:
    """One run on a stage whose TOML has flow_actions in front of the balancer."""

    def __init__(self, stage: Stage, view: View, requests: int) -> None:
        self.stage = stage
        self.lab = stage.lab
        self._view = view
        self._requests = requests
        self._flood: subprocess.Popen[str]
        self._guard: Reader
        self.traffic: Traffic
        self.wire: Wire
        self.nic: SoftnicBackend

    def run(self) -> Summary:
        """Let the requests flow, perform all steps, and prove the claims."""
        self.lab.add_clients(address for address in (*BROWSERS, *FLOODERS) if address not in (CLIENT4, CLIENT6))
        sources = [word for address in BROWSERS for word in ("--source", address)]
        client = self.stage.client("--kept", str(KEPT), "--life", str(LIFE), "--rate", str(RATE), *sources)
        self.nic = SoftnicBackend.open(self.stage.pins, "demo")
        try:
            with Wire(self.lab) as self.wire:
                self.traffic = Traffic(self.stage, self._view, client, self._requests, "flows")
                for step in self._steps():
                    self.traffic.perform(step)
                self.traffic.wait_for_requests()
        finally:
            self.nic.close()
        seconds, counters = self.traffic.seconds, read_counters(self.stage.socket)
        records = self.traffic.end()
        events = self.traffic.progress.events
        return summarise(
            records,
            [
                none_lost(records),
                right_real(records, Prediction(self.stage.config, self.lab.reals)),
                address_kept(records),
                *(as_check(event) for event in events),
            ],
            strategy=self.stage.strategy,
            paths=(counters.fast, counters.slow),
            retransmitted=retransmitted(self.lab),
            seconds=seconds,
            events=events,
        )

    def _steps(self) -> Iterator[Step]:
        yield Step(
            "flood",
            f"{len(FLOODERS)} sources flood the VIPs",
            "without the application the flood reaches XDP, and the reals",
            self._begin_flood,
        )
        yield Step(
            "guard",
            f"{APPLICATION.name} is started",
            "the application finds each flooding source and no other, and the NIC drops their packets",
            self._start_application,
        )
        yield Step(
            "dscp",
            f"packets of {' and '.join(PREFERRED)} at the reals",
            f"the preferred client's packets reach the reals with DSCP {DSCP}, all others as they were sent",
            self._look_at_dscp,
        )
        yield Step(
            "second_wave",
            f"the sources flood again: {SECOND_WAVE:,} packets",
            "the NIC drops each packet of a flood that is known, and counts it; none reaches XDP",
            self._send_second_wave,
        )

    def _begin_flood(self) -> str:
        quiet = self._rate_at_xdp()
        self._flood = self._send(FIRST_WAVE)
        self.traffic.wait_until(
            lambda: set(FLOODERS) <= set(self.wire.sources()), "packets of each source at the reals"
        )
        return f"{quiet:,.0f} packets/s at XDP before, {self._rate_at_xdp():,.0f} now"

    def _start_application(self) -> str:
        began = time.monotonic()
        prefer = [word for address in PREFERRED for word in ("--prefer", address)]
        argv = [sys.executable, str(APPLICATION), "--socket", str(self.stage.socket), "--limit", str(LIMIT)]
        process = self.lab.popen("lb", [*argv, *prefer], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._guard = Reader(APPLICATION.name, process, process.stdout)
        self.traffic.wait_until(self._all_in_nic, "an entry for each flooding source, in hardware")
        found = time.monotonic() - began
        low = self._rate_at_xdp()
        self.lab.stop(self._flood)
        entries = self._entries("drop")
        if {entry.src for entry in entries} != set(FLOODERS):
            raise UnseenError(f"entries for the flooding sources alone: not seen; {[each.src for each in entries]}")
        return (
            f"{len(entries)} sources found and in the NIC after {found:.1f} s; {low:,.0f} packets/s at XDP "
            f"while the flood goes on, {self._dropped():,} dropped by the NIC"
        )

    def _look_at_dscp(self) -> str:
        self.traffic.wait_until(lambda: all(each.in_hardware for each in self._entries("set_dscp")), "rules of the NIC")
        before = self.wire.counts()
        self.traffic.wait_for_answers(REQUESTS_EACH)
        packets = self.wire.counts() - before
        of_preferred = {packet: count for packet, count in packets.items() if packet[0] in PREFERRED}
        wrong = {packet for packet in packets if packet[1] != (DSCP if packet[0] in PREFERRED else 0)}
        if wrong or {source for source, _ in of_preferred} != set(PREFERRED):
            raise UnseenError(f"the right DSCP on all packets: not seen; {dict(packets)}")
        count = sum(of_preferred.values())
        return f"{count:,} packets of it with DSCP {DSCP}, {packets.total() - count:,} of other clients with 0"

    def _send_second_wave(self) -> str:
        before, seen = self._dropped(), self.wire.sources()
        flood = self._send(SECOND_WAVE)
        began = time.monotonic()
        at_xdp = self.lab.received("lb", "eth1")
        self.traffic.wait_until(lambda: flood.poll() is not None, "the end of the flood")
        rate = (self.lab.received("lb", "eth1") - at_xdp) / (time.monotonic() - began)
        # The daemon reads the NIC's counters at times.
        self.traffic.wait_until(lambda: self._counted() >= before + SECOND_WAVE, "all packets, counted by the entries")
        dropped, counted = self._dropped(), self._counted()
        reached = sum((self.wire.sources() - seen)[source] for source in FLOODERS)
        text = (
            f"{dropped - before:,} of {SECOND_WAVE:,} dropped by the NIC, {reached:,} at the reals; the entries have "
            f"counted {counted:,} of {dropped:,} packets of both floods; {rate:,.0f} packets/s at XDP meanwhile"
        )
        if reached or dropped - before != SECOND_WAVE or counted != dropped:
            raise UnseenError(text)
        return text

    def _send(self, packets: int) -> subprocess.Popen[str]:
        """Start the flood."""
        sources = [word for address in FLOODERS for word in ("--source", address)]
        argv = [sys.executable, "-m", "demo.flood", VIP4, VIP6, *sources]
        argv += ["--packets", str(packets), "--rate", str(FLOOD_RATE)]
        return self.lab.popen("client", argv, stdout=subprocess.DEVNULL, cwd=ROOT)

    def _all_in_nic(self) -> bool:
        self._guard.has_printed("flood", self.stage.stop)  # raises if it has ended
        return set(FLOODERS) <= {entry.src for entry in self._entries("drop") if entry.in_hardware}

    def _entries(self, action: str) -> list[FlowStatus]:
        """Return the applications' entries with this action."""
        with FlowClient(self.stage.socket, timeout=TIMEOUT) as daemon:
            return list(daemon.list(action=action, owner="application"))

    def _counted(self) -> int:
        """Return the packets that the NIC has dropped, as the daemon knows them."""
        return sum(entry.hardware_packets for entry in self._entries("drop"))

    def _dropped(self) -> int:
        """Return the packets that the NIC has dropped, read from the NIC."""
        return int(self.nic.counters()[NicCounter.DROPPED])

    def _rate_at_xdp(self) -> float:
        """Count the packets of the balancer's interface for a while; the rate per second."""
        began, before = time.monotonic(), self.lab.received("lb", "eth1")
        self.traffic.flow_for(LOOK)
        return (self.lab.received("lb", "eth1") - before) / (time.monotonic() - began)
