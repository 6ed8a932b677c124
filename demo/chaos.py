# SPDX-License-Identifier: Apache-2.0
"""The chaos: while requests flow, one event after another disturbs the balancer, and its effect is waited for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from nfcore.control.client import request
from nfcore.kernel import online_cpus

from .chaos_proof import Absence, Ring, prove_chaos
from .events import Step, UnseenError
from .hardware import Hardware, Paths
from .proof import Prediction, Summary
from .scenario import FIRST_RULES, NIC_RULES, Scenario
from .stage import Stage
from .traffic import Traffic, retransmitted
from .view import View

KEPT, LIFE, RATE = 64, 24, 400
"""Connections kept alive, requests on each, requests a second at most."""
MANY_RULES = 60_000
"""A `max_rules` above the size of the NIC's table."""
REQUESTS_EACH = 200
"""Requests that must be answered while something is missing."""
WARM = 0.25
"""Share of packets on the fast path before a kill: enough to see that the fast path goes on."""
CABLE_OUT = 0.3
"""Seconds. TCP retransmits after 0.2 s at the earliest, a SYN after 1 s, and a request may take 5 s."""
RANDOM_UP_TO = 1.0
"""Seconds; a random moment is within them."""


class Chaos:
    """One run of the chaos on a stage whose TOML is `scenario`'s."""

    def __init__(self, stage: Stage, view: View, scenario: Scenario, requests: int) -> None:
        self.stage = stage
        self.lab = stage.lab
        self.scenario = scenario
        self.victim = stage.lab.reals[1]
        """The real that is drained and removed."""
        self._view = view
        self._requests = requests
        self._rings = [Ring(self._prediction(), 0.0)]
        self._absences: list[Absence] = []
        self._random = random.Random()
        self.traffic: Traffic
        self.hardware: Hardware

    def run(self) -> Summary:
        """Let the requests flow, perform all events, and prove the claims."""
        # On one CPU: a veth would spread the packets of one flow over CPUs, which a NIC does not.
        self.lab.steer(online_cpus()[-1])
        client = self.stage.client("--kept", str(KEPT), "--life", str(LIFE), "--rate", str(RATE))
        self.traffic = Traffic(self.stage, self._view, client, self._requests)
        with Hardware(self.stage.pins) as self.hardware:
            first = self.hardware.paths()
            for step in self._steps():
                self.traffic.perform(step)
            self.traffic.wait_for_requests()
            paths = self.hardware.paths() - first
        seconds = self.traffic.seconds
        records = self.traffic.end()
        return prove_chaos(
            records,
            self.traffic.progress.events,
            rings=self._rings,
            absences=self._absences,
            strategy=self.stage.strategy,
            paths=(paths.fast, paths.slow),
            retransmitted=retransmitted(self.lab),
            seconds=seconds,
        )

    def _steps(self) -> Iterator[Step]:
        name = self.victim.name
        many = f"{KEPT} connections alive"
        yield Step(
            "max_rules",
            f"max_rules = {FIRST_RULES}, {many}",
            "when max_rules is reached, flows wait and are answered all the same",
            self._reach_max_rules,
        )
        # Now, while most flows wait long: with more room most would have their rule before the command starts.
        yield Step("explain", "nfcore explain", "nfcore explain shows why a flow waits", self._explain)
        yield Step(
            "nic_full",
            f"max_rules = {MANY_RULES:,} (reload), a NIC with room for {NIC_RULES}, {many}",
            "a full NIC is noticed; flows wait and are answered all the same",
            self._fill_nic,
        )
        for moment in ("at a random moment", "at another random moment"):
            yield Step("kill", f"daemon killed (SIGKILL) {moment}", _KILLED, self._kill)
        yield Step("kill_starting", "daemon killed, and again while it starts", _KILLED, self._kill_starting)
        yield Step(
            "wipe",
            "all rules removed from the NIC without the daemon",
            "rules that have vanished are noticed and installed again",
            self._wipe,
        )
        yield Step(
            "cable",
            "link between NIC and balancer down and up",
            "a link that goes down and up costs time and nothing else",
            self._cable,
        )
        yield Step(
            "drain",
            f"{name} drained (weight = 0, reload)",
            "a drained real keeps its connections until they end",
            self._drain,
        )
        yield Step("remove", f"{name} removed (reload)", "no packet reaches a real that is removed", self._remove)
        yield Step("return", f"{name} added again (reload)", "a real that is back gets connections", self._bring_back)
        yield Step(
            "offload_off",
            "nfcore offload off",
            "while offloading is off, the NIC has no rule and all packets take the slow path",
            self._switch_off,
        )
        yield Step(
            "kill_off",
            "daemon killed while offloading is switched off",
            "offloading stays off when the daemon is killed and started again",
            self._kill_off,
        )
        yield Step("offload_on", "nfcore offload on", "when offloading is on again, rules return", self._switch_on)

    # A full table

    def _reach_max_rules(self) -> str:
        self.traffic.wait_until(self._waits_at(FIRST_RULES), f"{FIRST_RULES} rules, and flows that wait")
        seen = self._table_use()
        self.traffic.wait_for_answers(REQUESTS_EACH)
        return seen

    def _fill_nic(self) -> str:
        self.scenario.allow(MANY_RULES)
        self._reload()
        self.traffic.wait_until(
            lambda: self.traffic.counters.full and self._waits_at(NIC_RULES)(), "a full NIC, and flows that wait"
        )
        seen = self._table_use()
        self.traffic.wait_for_answers(REQUESTS_EACH)
        return f"nfcore_nic_full = 1: {seen}"

    def _waits_at(self, rules: int) -> Callable[[], bool]:
        return lambda: self.traffic.counters.waiting > 0 and self.hardware.rules() == rules

    def _table_use(self) -> str:
        return f"{self.hardware.rules()} rules in the NIC, {self.traffic.counters.waiting} flows waiting"

    def _explain(self) -> str:
        reasons: list[str] = []

        def explained() -> bool:
            rows = sorted(self._waiting(), key=lambda row: float(row["since_seconds"]))
            # The flow in the middle: the oldest may have ended, the newest may get its rule at once.
            answer = self.stage.command("explain", rows[len(rows) // 2]["flow"]) if rows else {"found": []}
            reasons.extend(f"{row['flow']}: {row['why']}" for row in answer["found"] if row["state"] == "waiting")
            return bool(reasons)

        self.traffic.wait_until(explained, "a flow that waits, explained")
        return reasons[0]

    def _waiting(self) -> list[dict[str, Any]]:
        # Over the socket: while a command starts a flow may get its rule.
        rows: list[dict[str, Any]] = request(self.stage.socket, "flows", states=["waiting"], limit=KEPT)["flows"]
        return rows

    # A daemon that is killed

    def _kill(self) -> str:
        return self._without_daemon(lambda: None)

    def _kill_starting(self) -> str:
        def once_more() -> None:
            self.stage.launch_daemon()
            self.traffic.flow_for(self._random.uniform(0, RANDOM_UP_TO))
            self.stage.kill_daemon()

        return self._without_daemon(once_more)

    def _kill_off(self) -> str:
        before = self.hardware.paths()
        self._restart(lambda: None)
        self.traffic.wait_for_answers(REQUESTS_EACH)
        packets, rules = self.hardware.paths() - before, self.hardware.rules()
        if packets.fast or not packets.slow or rules:
            raise UnseenError(f"slow path alone: not seen; {rules} rules in the NIC, {packets.summary}")
        return f"no rule in the NIC before, during and after; {packets.summary}"

    def _without_daemon(self, meanwhile: Callable[[], None]) -> str:
        self.traffic.flow_for(self._random.uniform(0, RANDOM_UP_TO))
        # Last: rules of connections that end meanwhile would show nothing.
        self.traffic.reset_share()
        self.traffic.wait_until(
            lambda: (self.traffic.progress.recent_share or 0) >= WARM, f"{WARM:.0%} on the fast path"
        )
        held, packets, seconds = self._restart(meanwhile)
        adopted = self.traffic.counters.adopted
        seen = f"{adopted} of {held} rules taken over after {seconds:.1f} s without a daemon: {packets.summary}"
        if not adopted or not _both(packets):
            raise UnseenError(f"rules taken over and both paths in use: not seen; {seen}")
        return seen

    def _restart(self, meanwhile: Callable[[], None]) -> tuple[int, Paths, float]:
        """Kill the daemon and start it again; rules in the NIC then, packets until then, seconds without a daemon."""
        began, before = time.monotonic(), self.hardware.paths()
        self.traffic.daemon_answers = False
        self.stage.kill_daemon()
        self.traffic.wait_for_answers(REQUESTS_EACH)
        meanwhile()
        held, packets = self.hardware.rules(), self.hardware.paths() - before
        reader = self.stage.launch_daemon()
        self.traffic.wait_until(lambda: reader.has_printed("ready", self.stage.stop), "a daemon that is ready")
        self.traffic.daemon_answers = True
        self.traffic.read()
        return held, packets, time.monotonic() - began

    # A NIC that loses its rules, a link that goes down

    def _wipe(self) -> str:
        before = self.traffic.read()
        gone = self.hardware.wipe()
        began = time.monotonic()
        self.traffic.wait_until(
            lambda: self.traffic.counters.vanished > before.vanished and self.hardware.rules() >= NIC_RULES // 2,
            "rules vanished, and rules in the NIC again",
        )
        again = time.monotonic() - began
        self.traffic.wait_until(lambda: self.traffic.counters.refill not in (0, before.refill), "nfcore_refill_seconds")
        refill = self.traffic.counters.refill
        return (
            f"{gone} rules removed; half as many in the NIC again after {again:.2f} s, the hottest flows first; "
            f"all that had vanished installed again or ended after {refill:.2f} s"
        )

    def _cable(self) -> str:
        before = retransmitted(self.lab)
        began = time.monotonic()
        self.lab.run("nic", ["ip", "link", "set", "port0", "down"])
        try:
            self.traffic.flow_for(CABLE_OUT)
        finally:
            self.lab.run("nic", ["ip", "link", "set", "port0", "up"])
        out = time.monotonic() - began
        self.traffic.wait_for_answers(REQUESTS_EACH)
        paths = self.hardware.paths()
        self.traffic.wait_until(lambda: _both(self.hardware.paths() - paths), "packets on both paths")
        return f"down for {out:.2f} s; {retransmitted(self.lab) - before} TCP segments sent again, both paths in use"

    # Reals that are drained, removed and added

    def _drain(self) -> str:
        self.scenario.weigh(self.victim, 0)
        self._reload()
        left = self._connections()
        self.traffic.wait_until(lambda: not self._connections(), f"the end of {self.victim.name}'s connections")
        return f"{left} connections were alive and have ended since; new ones went to other reals"

    def _remove(self) -> str:
        self.scenario.remove(self.victim)
        self._reload()
        since, before = time.monotonic(), self.lab.received(self.victim.name, "eth0")
        self.traffic.wait_for_answers(2 * REQUESTS_EACH)
        came = self.lab.received(self.victim.name, "eth0") - before
        self._absences.append(Absence(self.victim.name, since, time.monotonic()))
        if came:
            raise UnseenError(f"{came} packets reached {self.victim.name} after it had been removed")
        return f"0 packets at {self.victim.name} while {2 * REQUESTS_EACH} requests were answered"

    def _bring_back(self) -> str:
        name = self.victim.name
        before = self.traffic.progress.reals.get(name, 0)
        self.scenario.bring_back()
        self._reload()
        self.traffic.wait_until(lambda: self.traffic.progress.reals.get(name, 0) >= before + 20, f"answers of {name}")
        answers = self.traffic.progress.reals[name] - before
        return f"{answers} requests answered by {name} since, {self._connections()} connections alive"

    def _connections(self) -> int:
        return self.lab.tcp_sockets(self.victim.name, 80)

    def _reload(self) -> None:
        """Make the daemon read the TOML again. During the call either ring may be in use."""
        began = time.monotonic()
        self.stage.command("reload")
        self._rings[-1].until = time.monotonic()
        self._rings.append(Ring(self._prediction(), began))

    def _prediction(self) -> Prediction:
        return Prediction(self.scenario.path, self.lab.reals)

    # The kill switch

    def _switch_off(self) -> str:
        removed: dict[str, Any] = self.stage.command("offload", "off")
        self.traffic.wait_until(lambda: not self.hardware.rules(), "a NIC without rules")
        self.traffic.poll()  # a tick for packets that were marked just before
        before = self.hardware.paths()
        self.traffic.wait_for_answers(REQUESTS_EACH)
        packets, rules = self.hardware.paths() - before, self.hardware.rules()
        seen = f"{removed['rules_removed']} rules removed; since then {packets.summary}"
        if packets.fast or not packets.slow or rules:
            raise UnseenError(f"slow path alone: not seen; {rules} rules in the NIC, {seen}")
        return seen

    def _switch_on(self) -> str:
        before = self.hardware.paths()
        self.stage.command("offload", "on")
        self.traffic.wait_until(
            lambda: self.hardware.rules() >= NIC_RULES // 2 and _both(self.hardware.paths() - before),
            "rules in the NIC, and packets on the fast path",
        )
        return f"{self.hardware.rules()} rules in the NIC; {(self.hardware.paths() - before).summary}"


_KILLED = "without a daemon connections go on, on both paths; the next daemon takes over the rules"


def _both(paths: Paths) -> bool:
    return paths.fast > 0 and paths.slow > 0
