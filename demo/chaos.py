# SPDX-License-Identifier: Apache-2.0
"""The chaos: everything that can go wrong is made to happen while requests flow, and each effect is waited for."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nfcore.control.client import request
from nfcore.errors import NfcoreError
from nfcore.kernel import online_cpus

from .chaos_proof import Absence, Ring, prove_chaos
from .events import Event, UnseenError
from .hardware import Hardware, Paths
from .proof import Prediction, Summary
from .scenario import FIRST_RULES, NIC_RULES, Scenario
from .stage import Stage
from .traffic import PATIENCE, Traffic, retransmitted
from .view import View

KEPT, LIFE, RATE = 64, 24, 400
"""Connections kept alive, requests on each, requests a second at most."""
PLENTY = 60_000
"""`max_rules` that are more than the NIC has room for."""
WITHOUT = 200
"""Requests to be answered while something is missing."""
WARM = 0.25
"""Share of the packets on the fast path from which on it can be told that it goes on."""
CABLE_OUT = 0.3
"""Seconds: TCP sends again after 0.2 s at the earliest, a SYN after 1 s, and a request may take 5."""
RANDOM_WITHIN = 1.0
"""Seconds within which a random moment lies."""


@dataclass(frozen=True)
class Step:
    """One thing to do; `act` waits until its effect is seen and says what that was."""

    name: str
    what: str
    claim: str
    act: Callable[[], str]


class Chaos:
    """One run of the chaos on a stage whose TOML is `scenario`'s."""

    def __init__(self, stage: Stage, view: View, scenario: Scenario, requests: int) -> None:
        self.stage = stage
        self.lab = stage.lab
        self.scenario = scenario
        self.victim = stage.lab.reals[1]
        """The real that is drained."""
        self._view = view
        self._requests = requests
        self._rings = [Ring(self._prediction(), 0.0)]
        self._absences: list[Absence] = []
        self._random = random.Random()
        self.traffic: Traffic
        self.hardware: Hardware

    def run(self) -> Summary:
        """Let the requests flow, do everything, and prove what is claimed."""
        # One queue, one CPU: what a veth does with several CPUs no NIC does to the packets of one flow.
        self.lab.steer(online_cpus()[-1])
        client = self.stage.client("--kept", str(KEPT), "--life", str(LIFE), "--rate", str(RATE))
        began = time.monotonic()
        self.traffic = Traffic(self.stage, self._view, client, self._requests)
        with Hardware(self.stage.pins) as self.hardware:
            first = self.hardware.paths()
            for step in self._steps():
                self._perform(step, began)
            self._enough()
            paths = self.hardware.paths() - first
        seconds = time.monotonic() - began
        records = self.traffic.end()
        return prove_chaos(
            records,
            self.traffic.picture.events,
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
            "where max_rules is reached, flows wait and are answered all the same",
            self._reach_max_rules,
        )
        # Here, where most flows wait for long: with more room most have their rule before the command has started.
        yield Step("explain", "nfcore explain", "nfcore explain says why a flow waits", self._explain)
        yield Step(
            "nic_full",
            f"max_rules = {PLENTY:,} (reload), a NIC with room for {NIC_RULES}, {many}",
            "a full NIC is noticed; flows wait and are answered all the same",
            self._fill_nic,
        )
        for moment in ("at a random moment", "at another"):
            yield Step("kill", f"daemon killed (SIGKILL) {moment}", _KILLED, self._kill)
        yield Step("kill_starting", "daemon killed, and again while it starts", _KILLED, self._kill_starting)
        yield Step(
            "wipe",
            "all rules taken out of the NIC behind the daemon's back",
            "rules that have vanished are noticed and put back",
            self._wipe,
        )
        yield Step(
            "cable",
            "cable between NIC and balancer out and in again",
            "a link that goes and comes back costs time and nothing else",
            self._cable,
        )
        yield Step(
            "drain",
            f"{name} drained (weight = 0, reload)",
            "a drained real keeps its connections until they end",
            self._drain,
        )
        yield Step("remove", f"{name} removed (reload)", "no packet reaches a real that is removed", self._remove)
        yield Step("return", f"{name} brought back (reload)", "a real that is back gets connections", self._bring_back)
        yield Step(
            "offload_off",
            "nfcore offload off",
            "switched off, no rule is left in the NIC and everything takes the slow path",
            self._switch_off,
        )
        yield Step(
            "kill_off",
            "daemon killed while offloading is switched off",
            "switched off holds when the daemon is killed and started again",
            self._kill_off,
        )
        yield Step("offload_on", "nfcore offload on", "switched on, rules come back", self._switch_on)

    def _perform(self, step: Step, start: float) -> None:
        began = time.monotonic()
        self.traffic.began(step.what)
        try:
            passed, detail = True, step.act()
        except (UnseenError, NfcoreError) as error:
            # A daemon that has ended of its own accord ends the demo, too, with its words.
            self.stage.check()
            passed, detail = False, str(error)
        times = (round(began - start, 1), round(time.monotonic() - began, 2))
        self.traffic.ended(Event(step.name, step.what, step.claim, *times, passed, detail))

    def _enough(self) -> None:
        # A failure shows in the proof; here it would only hide that.
        with contextlib.suppress(UnseenError):
            self.traffic.until(lambda: self.traffic.picture.asked >= self._requests, "enough requests", 10 * PATIENCE)

    # A full table

    def _reach_max_rules(self) -> str:
        self.traffic.until(self._waits_at(FIRST_RULES), f"{FIRST_RULES} rules, and flows that wait")
        seen = self._room()
        self.traffic.answers(WITHOUT)
        return seen

    def _fill_nic(self) -> str:
        self.scenario.allow(PLENTY)
        self._reload()
        self.traffic.until(
            lambda: self.traffic.meters.full and self._waits_at(NIC_RULES)(), "a full NIC, and flows that wait"
        )
        seen = self._room()
        self.traffic.answers(WITHOUT)
        return f"nfcore_nic_full = 1: {seen}"

    def _waits_at(self, rules: int) -> Callable[[], bool]:
        return lambda: self.traffic.meters.waiting > 0 and self.hardware.rules() == rules

    def _room(self) -> str:
        return f"{self.hardware.rules()} rules in the NIC, {self.traffic.meters.waiting} flows waiting"

    def _explain(self) -> str:
        words: list[str] = []

        def explained() -> bool:
            rows = sorted(self._waiting(), key=lambda row: float(row["since_seconds"]))
            # Those that have waited for longest may have ended, the others may be next: one in the middle.
            answer = self.stage.order("explain", rows[len(rows) // 2]["flow"]) if rows else {"found": []}
            words.extend(f"{row['flow']}: {row['why']}" for row in answer["found"] if row["state"] == "waiting")
            return bool(words)

        self.traffic.until(explained, "a flow that waits, explained")
        return words[0]

    def _waiting(self) -> list[dict[str, Any]]:
        # Over the socket and not by a command, which takes long enough for a flow to have its rule.
        rows: list[dict[str, Any]] = request(self.stage.socket, "flows", states=["waiting"], limit=KEPT)["flows"]
        return rows

    # A daemon that is gone

    def _kill(self) -> str:
        return self._without_daemon(lambda: None)

    def _kill_starting(self) -> str:
        def once_more() -> None:
            self.stage.launch_daemon()
            self.traffic.flow_for(self._random.uniform(0, RANDOM_WITHIN))
            self.stage.kill_daemon()

        return self._without_daemon(once_more)

    def _kill_off(self) -> str:
        before = self.hardware.paths()
        self._restart(lambda: None)
        self.traffic.answers(WITHOUT)
        taken, rules = self.hardware.paths() - before, self.hardware.rules()
        if taken.fast or not taken.slow or rules:
            raise UnseenError(f"slow path alone: not seen; {rules} rules in the NIC, {taken.summary}")
        return f"no rule in the NIC before, meanwhile and after; {taken.summary}"

    def _without_daemon(self, meanwhile: Callable[[], None]) -> str:
        self.traffic.flow_for(self._random.uniform(0, RANDOM_WITHIN))
        # Last, since the rules of connections that have ended meanwhile would show nothing.
        self.traffic.share_again()
        self.traffic.until(lambda: (self.traffic.picture.recent_share or 0) >= WARM, f"{WARM:.0%} on the fast path")
        held, taken, seconds = self._restart(meanwhile)
        adopted = self.traffic.meters.adopted
        seen = f"{adopted} of {held} rules taken over after {seconds:.1f} s without a daemon, in which {taken.summary}"
        if not adopted or not _both(taken):
            raise UnseenError(f"rules taken over and both paths in use: not seen; {seen}")
        return seen

    def _restart(self, meanwhile: Callable[[], None]) -> tuple[int, Paths, float]:
        """Kill the daemon and start it again; the NIC's rules then, packets until then, and seconds without it."""
        began, before = time.monotonic(), self.hardware.paths()
        self.traffic.daemon_answers = False
        self.stage.kill_daemon()
        self.traffic.answers(WITHOUT)
        meanwhile()
        held, taken = self.hardware.rules(), self.hardware.paths() - before
        reader = self.stage.launch_daemon()
        self.traffic.until(lambda: reader.has_said("ready", self.stage.stop), "a daemon that is ready")
        self.traffic.daemon_answers = True
        self.traffic.read()
        return held, taken, time.monotonic() - began

    # A NIC that forgets, a link that goes

    def _wipe(self) -> str:
        before = self.traffic.read()
        gone = self.hardware.wipe()
        began = time.monotonic()
        self.traffic.until(
            lambda: self.traffic.meters.vanished > before.vanished and self.hardware.rules() >= NIC_RULES // 2,
            "rules gone, and rules in the NIC again",
        )
        again = time.monotonic() - began
        self.traffic.until(
            lambda: self.traffic.meters.refill not in (0, before.refill),
            "the end of putting back",
        )
        refill = self.traffic.meters.refill
        return (
            f"{gone} rules wiped; half as many in the NIC after {again:.2f} s, the hottest flows first, "
            f"and all that had vanished put back or ended after {refill:.2f} s"
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
        self.traffic.answers(WITHOUT)
        paths = self.hardware.paths()
        self.traffic.until(lambda: _both(self.hardware.paths() - paths), "packets on both paths")
        return f"out for {out:.2f} s; {retransmitted(self.lab) - before} TCP segments sent again, both paths in use"

    # Reals that come and go

    def _drain(self) -> str:
        self.scenario.weigh(self.victim, 0)
        self._reload()
        left = self._connections()
        self.traffic.until(lambda: not self._connections(), f"the end of {self.victim.name}'s connections")
        return f"{left} connections were alive then and have ended since; new ones went elsewhere"

    def _remove(self) -> str:
        self.scenario.remove(self.victim)
        self._reload()
        since, before = time.monotonic(), self.lab.received(self.victim.name, "eth0")
        self.traffic.answers(2 * WITHOUT)
        came = self.lab.received(self.victim.name, "eth0") - before
        self._absences.append(Absence(self.victim.name, since, time.monotonic()))
        if came:
            raise UnseenError(f"{came} packets reached {self.victim.name} after it had been removed")
        return f"0 packets at {self.victim.name} while {2 * WITHOUT} requests were answered"

    def _bring_back(self) -> str:
        name = self.victim.name
        before = self.traffic.picture.reals.get(name, 0)
        self.scenario.bring_back()
        self._reload()
        self.traffic.until(lambda: self.traffic.picture.reals.get(name, 0) >= before + 20, f"answers of {name}")
        answers = self.traffic.picture.reals[name] - before
        return f"{answers} requests answered by {name} since, {self._connections()} connections alive"

    def _connections(self) -> int:
        return self.lab.tcp_sockets(self.victim.name, 80)

    def _reload(self) -> None:
        """Let the daemon read the TOML again. Meanwhile either ring may be in force."""
        began = time.monotonic()
        self.stage.order("reload")
        self._rings[-1].until = time.monotonic()
        self._rings.append(Ring(self._prediction(), began))

    def _prediction(self) -> Prediction:
        return Prediction(self.scenario.path, self.lab.reals)

    # The kill switch

    def _switch_off(self) -> str:
        removed: dict[str, Any] = self.stage.order("offload", "off")
        self.traffic.until(lambda: not self.hardware.rules(), "a NIC without rules")
        # Packets that were marked just before are on their way still.
        self.traffic.pump()
        before = self.hardware.paths()
        self.traffic.answers(WITHOUT)
        taken, rules = self.hardware.paths() - before, self.hardware.rules()
        seen = f"{removed['rules_removed']} rules removed; since then {taken.summary}"
        if taken.fast or not taken.slow or rules:
            raise UnseenError(f"slow path alone: not seen; {rules} rules in the NIC, {seen}")
        return seen

    def _switch_on(self) -> str:
        before = self.hardware.paths()
        self.stage.order("offload", "on")
        self.traffic.until(
            lambda: self.hardware.rules() >= NIC_RULES // 2 and _both(self.hardware.paths() - before),
            "rules in the NIC, and packets on the fast path",
        )
        return f"{self.hardware.rules()} rules in the NIC; {(self.hardware.paths() - before).summary}"


_KILLED = "without a daemon connections go on by both paths; the next takes over the rules"


def _both(paths: Paths) -> bool:
    return paths.fast > 0 and paths.slow > 0
