# SPDX-License-Identifier: Apache-2.0
"""The interface of a network function that the engine uses, and the result of a traced packet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernel import Program
from .config import Network
from .flows import Address, FlowBatch, FlowMatch
from .mark_pools import CpuPools
from .rules import Device


class NetworkFunction(Protocol):
    """What the engine needs of an NF, all of it. :meth:`Context.register_nf` sets `number`.

    A class that names this one as its base inherits what most functions need nothing else of, and goes on working when
    something is added here.
    """

    name: str
    number: int
    pools: CpuPools | None = None
    """The pools of marks, when the strategy lets XDP take marks; else None."""

    def wake_fds(self) -> Sequence[int]:
        """Descriptors that become readable when there is a report that should be read at once."""

    def read_events(self, limit: int) -> FlowBatch:
        """Read up to `limit` reports of flows; never waits."""

    def targets(self) -> FlowBatch:
        """Give all targets in the order of the configuration: a row each, with nf and target set and a key of zeros."""

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Give the group of each target, a small number: `[offload] max_share` limits the rules of each group."""

    def describe(self, target: int) -> Mapping[str, str]:
        """Describe a target for people, such as ``{"vip": "198.18.10.1:80/tcp", "real": "198.18.20.11"}``.

        The keys are the function's own words; commands use them as titles of columns, those of up to three letters in
        capitals. At most three fit there. Of exactly two, the first is what clients send to, the second where it goes:
        commands that have one column write ``198.18.10.1:80/tcp → 198.18.20.11``.
        """

    def target_facts(self, target: int) -> TargetFacts:
        """Say what is known of a target as values, for strategies and policies; nothing of one that is gone.

        Called by way of :meth:`.context.Context.target_facts`.
        """
        return TargetFacts()

    def fingerprint(self) -> bytes:
        """Give bytes that are equal in two runs only if each target means the same in both."""

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Fill in the targets of flows whose rules an earlier run left: per row, whether the mark has a fitting entry.

        Called at the start, after the targets are published, and only when the fingerprints of both runs are equal.
        """

    program: Program
    """The loaded program. The core attaches it: alone, or as one of a chain (`bpf/lib/chain.h`)."""

    def attached(self, device: Device) -> None:
        """Note that packets of the device reach the program from now on."""

    def let_go(self, batch: FlowBatch) -> None:
        """Forget what is kept for flows while they have rules, or wait for them.

        No rule is left, and the slow path decides alone. A flow may never have had anything kept.
        """
        return

    def keep_only(self, batch: FlowBatch) -> None:
        """Forget what is kept for flows while they have rules, except the batch: all that have one or wait for it.

        Called when the rules of an earlier run have been taken over or removed, and at the end of each reload.
        """
        return

    def have_moved(self, batch: FlowBatch, reported: NDArray[np.uint64] | None = None) -> NDArray[np.bool_]:
        """Say which flows with rules are another target's by now, though nobody has reported ReportKind.MOVED.

        Asked when flows are reported with other targets (`reported`) than the rows', those of their rules, and when
        rules have vanished (None). A flow that has moved gets no rule with the row's target any more; one that has not
        is given to `restore_flows`.
        """
        return np.full(len(batch), reported is not None)

    orders: int = 0
    """How many flows an application may order by way of the function at a time (:class:`~.flows.ReportKind`)."""

    claim_changes: int = 0
    """Grows whenever :meth:`claims` may give other answers than before."""

    def claims(self, batch: FlowBatch, since: int | None = None) -> NDArray[np.bool_]:
        """Say which flows the function has an opinion on, flows of functions that come later in a chain.

        It must see their packets, so the later function gets no mark for them. Rows: key, family and ifindex are set.
        since: an earlier `claim_changes`; a function may leave out what it has claimed since before that.
        """
        return np.zeros(len(batch), dtype=bool)

    def rules_ended(self, batch: FlowBatch, counts: NDArray[np.uint64], idle: NDArray[np.float64]) -> None:
        """Keep what rules of ordered flows have counted that are gone from the NIC; counts: packets, bytes per row.

        `packets` of a row is that of the order; 0 for a rule of an earlier run. idle: seconds since a rule's counter
        was seen to grow, infinite when it was not.
        """
        return

    def resolve(self) -> Callable[[], Sequence[str]] | None:
        """Look anew at what the function has from the network: next hops, neighbours, addresses of its devices.

        Called whenever links, addresses, neighbours, routes or rules may have changed, every few seconds, and at every
        reload. It must not change anything: it runs on a thread of its own and may wait for the kernel, but not for
        other machines. Returns what is to be done on the engine's thread, which returns what has changed, a sentence
        each; None: nothing. The next call comes when that has been done. What is wrong belongs into
        `Health.trouble_sources`.
        """
        return None

    def explain(self, match: FlowMatch) -> Explanation | None:
        """Say what the function does with packets of a flow because of an order; None where there is no order."""
        return None


def missing_members(nf: object) -> list[str]:
    """Name what an object has not of :class:`NetworkFunction`."""
    members = [name for name in (*vars(NetworkFunction), *NetworkFunction.__annotations__) if not name.startswith("_")]
    return [name for name in dict.fromkeys(members) if getattr(nf, name, None) is None and name != "pools"]


@dataclass(frozen=True)
class TargetFacts:
    """What a network function knows of a target. None: it does not apply to this function, or to this target."""

    network: Network | None = None
    """The addresses that clients send to, such as a VIP's."""
    port: int | None = None
    """The port that clients send to; 0: any."""
    protocol: int | None = None
    """IP protocol, such as 6 for TCP."""
    destination: Address | None = None
    """Where the packets go, such as a real's address."""
    weight: int | None = None
    """The target's share against the others of its group (`groups`); 0: it is to get no new flows."""
    own: Mapping[str, object] = field(default_factory=dict)
    """Values that only this function has; its guide names them."""


@dataclass(frozen=True)
class Explanation:
    """What a function does with packets of a flow, and the ordered flow (perhaps masked) that covers it."""

    text: str
    """Such as ``entry 'block-1': drop``, and why it is not to be in hardware, if that is so."""
    ordered: FlowBatch
    """The flow as it was ordered, one row per device with key, family, nf and ifindex; none when it was not ordered."""


@dataclass(frozen=True)
class PacketTrace:
    """What a program did with one frame."""

    verdict: str
    """``XDP_TX``, ``XDP_PASS``, ``XDP_DROP``, …"""
    output: bytes
    """The frame afterwards, without metadata."""
    path: str
    """``fast``: by its mark; ``slow``: by lookup; ``none``: it is no traffic of the NF."""
    vip: str | None
    real: str | None
    why: str = ""
    """Why it did not take the fast path or was not sent, as text. Empty: the core says what the path shows."""
    passed_on: bool = False
    """The function had no opinion, or let the packet go on: the next function of the chain gets `output`."""
    target: int | None = None
    """The target that the packet went to, which :meth:`NetworkFunction.describe` names; None: none, or not known."""
