# SPDX-License-Identifier: Apache-2.0
"""The carrier skb-mark on native veth: a socket's SO_MARK stands in for the filter that would set the mark."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from nfcore.plugins.katran_accel.layouts import AccelCounter
from tests.kernel.katran_accel.world import TWO_FAMILIES, balancer_toml, tcp
from tests.kernel.network import namespaces

from .veth_link import Link, open_link, set_mark

HERE, THERE = f"nftest-skbmark-{os.getpid()}", f"nftest-skbmark2-{os.getpid()}"
FRAME = tcp("198.18.1.2", "198.18.10.1")


def link(tmp_path: Path, strategy: str, network: str, before: Sequence[str] = ()) -> AbstractContextManager[Link]:
    path = tmp_path / "nf.toml"
    marking = f'strategy = "{strategy}"\ncarrier = "skb-mark"'
    path.write_text(balancer_toml(path.parent, TWO_FAMILIES, marking, "min_packets = 2"))
    return open_link(path, set_mark, HERE, network, before=before)


@pytest.fixture
def two_namespaces() -> Iterator[None]:
    with namespaces(HERE, THERE):
        yield


@pytest.mark.usefixtures("two_namespaces")
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_the_mark_of_the_socket_buffer_takes_the_fast_path(tmp_path: Path, strategy: str) -> None:
    with link(tmp_path, strategy, HERE) as here:
        plain = [here.exchange(FRAME) for _ in range(2)]
        assert here.engine.poll() == 1
        mark = int(here.engine.table.mark[0])
        assert mark
        marked = [here.exchange(FRAME, mark) for _ in range(3)]
        assert set(plain) == set(marked)
        assert here.count(AccelCounter.FAST) == 3
        assert here.exchange(FRAME, 60_001) in plain
        assert (here.count(AccelCounter.FAST), here.count(AccelCounter.UNKNOWN_MARK)) == (3, 1)


@pytest.mark.usefixtures("two_namespaces")
def test_a_mark_does_not_cross_into_another_namespace(tmp_path: Path) -> None:
    with link(tmp_path, "dest-id", THERE) as there:
        assert there.exchange(FRAME) == there.exchange(FRAME, 1)
        assert there.count(AccelCounter.SLOW) == 2


@pytest.mark.usefixtures("two_namespaces")
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_in_a_chain_the_mark_leads_straight_to_its_owner(tmp_path: Path, strategy: str) -> None:
    with link(tmp_path, strategy, HERE, ["one", "two"]) as here:
        plain = [here.exchange(FRAME) for _ in range(2)]
        assert here.engine.poll() == 1
        marked = [here.exchange(FRAME, int(here.engine.table.mark[0])) for _ in range(3)]
        assert set(plain) == set(marked)
        assert here.count(AccelCounter.FAST) == 3
        assert [each.seen for each in here.neighbours.values()] == [2, 2]
        # A mark that nobody owns begins at the first function.
        assert here.exchange(FRAME, 60_001) in plain
        assert [each.seen for each in here.neighbours.values()] == [3, 3]
