# SPDX-License-Identifier: Apache-2.0
"""What the kernel's refusals mean for a rule. Needs no device that refuses: only how its errno is understood."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from nfcore.api.flows import FlowMatch
from nfcore.api.rules import Drop, Outcome, Outcomes, Rule, RuleBatch, SetMark
from nfcore.plugins.tc_offload.backend import Settings, TcBackend, _Batch
from nfcore.plugins.tc_offload.netlink import NetlinkError
from nfcore.plugins.tc_offload.probe import Probe
from nfcore.plugins.tc_offload.rule_index import matches_of
from nfcore.plugins.tc_offload.shapes import Shape, kinds_of, shapes_of


@pytest.fixture
def backend() -> Iterator[TcBackend]:
    made = TcBackend(Settings("lo", socket.if_nametoindex("lo")))
    made.probed = Probe(hardware=True, mark_width=16)
    yield made
    made.close(remove=False)


@pytest.mark.parametrize(
    ("number", "text", "outcome"),
    [
        (errno.ENOSPC, "Table full", Outcome.FULL),
        (errno.EOPNOTSUPP, "", Outcome.UNSUPPORTED),
        (errno.EOPNOTSUPP, "Unsupported mask", Outcome.UNSUPPORTED),
        (errno.EINVAL, "Only exact matches", Outcome.UNSUPPORTED),
        (errno.EINVAL, "", Outcome.FAILED),
        (errno.EIO, "Firmware says no", Outcome.FAILED),
        (errno.ENOMEM, "", Outcome.FAILED),
        (errno.EEXIST, "", None),
        (errno.ENOENT, "", None),
    ],
)
def test_verdicts(backend: TcBackend, number: int, text: str, outcome: Outcome | None) -> None:
    rows = RuleBatch.of([Rule(FlowMatch.parse("198.18.1.2:1 > 198.18.10.1:80/tcp"), SetMark(1), 1)]).rows
    assert backend._outcome_of(NetlinkError(number, text), int(kinds_of(rows, shapes_of(rows))[0])) is outcome


def test_what_is_unsupported_is_not_tried_again_and_said_once(backend: TcBackend) -> None:
    matches = [FlowMatch.parse(f"198.18.1.2:{port} > 198.18.10.1:80/tcp") for port in (1, 2, 3)]
    rules = RuleBatch.of([Rule(match, Drop(), match.sport) for match in matches])
    refusal = NetlinkError(errno.EOPNOTSUPP, "Cannot drop")
    batch = _batch(rules)
    assert not backend._set_refusals(batch, np.arange(3), dict.fromkeys(range(3), refusal))
    assert batch.outcomes.status.tolist() == [Outcome.UNSUPPORTED] * 3
    said = "lo: IPv4 TCP rules to drop are not offloaded: Cannot drop: Operation not supported (EOPNOTSUPP)"
    assert batch.outcomes.messages == {0: said}
    assert backend._supported(_batch(rules)).tolist() == []
    marks = RuleBatch.of([Rule(match, SetMark(1), match.sport) for match in matches])
    assert backend._supported(_batch(marks)).tolist() == [0, 1, 2]
    again = backend.install(rules)
    assert again.status.tolist() == [Outcome.UNSUPPORTED] * 3
    assert not again.messages


def test_a_refusal_of_one_mask_is_none_of_another(backend: TcBackend) -> None:
    texts = [
        "198.18.1.0/24:* > 198.18.10.1:80/tcp",
        "198.18.1.0/24:* > 198.18.10.2:80/tcp",
        "198.18.0.0/16:* > 198.18.10.3:80/tcp",
    ]
    rules = RuleBatch.of([Rule(FlowMatch.parse(text), Drop(), number) for number, text in enumerate(texts)])
    batch = _batch(rules)
    assert not backend._set_refusals(batch, np.arange(1), {0: NetlinkError(errno.EOPNOTSUPP, "No such mask")})
    said = "lo: IPv4 masked rules to drop are not offloaded: No such mask: Operation not supported (EOPNOTSUPP)"
    assert batch.outcomes.messages == {0: said}
    assert backend._supported(_batch(rules)).tolist() == [2]
    marks = RuleBatch.of([Rule(FlowMatch.parse(text), SetMark(1), number) for number, text in enumerate(texts)])
    assert backend._supported(_batch(marks)).tolist() == [0, 1, 2]


def test_a_device_without_masks_takes_exact_rules(backend: TcBackend) -> None:
    found = Probe(
        hardware=True, mark_width=16, refused={str(Shape.MASKED4): NetlinkError(errno.EOPNOTSUPP, "No masks")}
    )
    backend._apply_probe(found)
    assert not backend.capabilities().masks
    assert backend.capabilities().drop
    texts = ["198.18.1.0/24:* > 198.18.10.1:80/tcp", "198.18.1.2:1 > 198.18.10.1:80/tcp"]
    rules = RuleBatch.of([Rule(FlowMatch.parse(text), SetMark(1), 1) for text in texts])
    assert backend._supported(_batch(rules)).tolist() == [1]


def test_a_full_table_and_a_failure_are_told_apart_rule_by_rule(backend: TcBackend) -> None:
    matches = [FlowMatch.parse(f"198.18.1.2:{port} > 198.18.10.1:80/udp") for port in (1, 2, 3)]
    batch = _batch(RuleBatch.of([Rule(match, SetMark(1), 1) for match in matches]))
    batch.outcomes.status[:] = Outcome.INSTALLED
    refusals = {0: NetlinkError(errno.ENOSPC, "Table full"), 2: NetlinkError(errno.EIO, "Firmware says no")}
    assert not backend._set_refusals(batch, np.arange(3), refusals)
    assert batch.outcomes.status.tolist() == [Outcome.FULL, Outcome.INSTALLED, Outcome.FAILED]
    assert batch.outcomes.messages == {
        0: "lo: IPv4 UDP rules to set mark: Table full: No space left on device (ENOSPC)",
        2: "lo: IPv4 UDP rules to set mark: Firmware says no: Input/output error (EIO)",
    }


def _batch(rules: RuleBatch) -> _Batch:
    rows = rules.rows
    return _Batch(rows, matches_of(rows), shapes_of(rows), Outcomes.all(Outcome.FAILED, len(rules)))
