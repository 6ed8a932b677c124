# SPDX-License-Identifier: Apache-2.0
"""From the report of a flow to its fast path by queue: engine, the example's backend, its ioctls, real frames.

The stand-in of the driver reads the requests and tells the queue of each frame; the frame then arrives on that queue.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from nfcore.plugins.katran_accel.layouts import AccelCounter
from tests.isolation import own_cpu
from tests.kernel.katran_accel.world import balancer_toml, tcp, udp
from tests.kernel.network import namespaces
from tests.paths import ROOT

from .veth_link import Link, choose_queue, open_link

EXAMPLE = ROOT / "examples/nfcore-nic-ntuple"
HERE = f"nftest-queuerules-{os.getpid()}"
QUEUES = 8
FLOWS = [tcp("198.18.1.2", "198.18.10.1"), tcp("198.18.1.3", "198.18.10.1"), udp("2001:db8::2", "2001:db8:10::2")]
TARGETS = """
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }, { address = "198.18.20.12" }, { address = "198.18.20.13" }]
[[katran_accel.vips]]
address = "2001:db8:10::2"
port = 53
protocol = "udp"
reals = [{ address = "2001:db8:20::11" }]
"""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in ("src", "tests"):
        monkeypatch.syspath_prepend(str(EXAMPLE / folder))
    from driver import Driver

    return Driver(queues=QUEUES)


@pytest.fixture
def namespace() -> Iterator[None]:
    with namespaces(HERE):
        yield


def link(tmp_path: Path, driver: Any, strategy: str) -> AbstractContextManager[Link]:
    from nfcore_nic_ntuple import NicNtuplePlugin, NtupleTable

    path = tmp_path / "nf.toml"
    marking = f'strategy = "{strategy}"\ncarrier = "rx-queue"\nwidth = 3\npool_chunk = 4'
    offload = "min_packets = 2\nmax_rules = 7"
    # With few marks none may lie in stock for a CPU that no frame comes to.
    katran = f"forwarding_cpus = [{own_cpu()}]"
    path.write_text(balancer_toml(path.parent, TARGETS, marking, offload, katran))
    plugin, table = NicNtuplePlugin(lambda _: driver), {"nic_ntuple": NtupleTable()}
    queue = choose_queue(HERE, QUEUES)
    return open_link(path, queue, HERE, HERE, queues=QUEUES, backend=plugin, table=table)


def through(here: Link, driver: Any, frame: bytes) -> bytes:
    """A frame as the NIC receives it."""
    return here.exchange(frame, driver.receive(frame))


@pytest.mark.usefixtures("namespace", "_one_cpu")
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_flows_with_a_rule_take_the_fast_path(tmp_path: Path, driver: Any, strategy: str) -> None:
    with link(tmp_path, driver, strategy) as here:
        before = {frame: through(here, driver, frame) for frame in FLOWS for _ in range(2)}
        assert here.count(AccelCounter.FAST) == 0
        assert here.engine.poll() == len(FLOWS)
        assert len(driver.rules) == len(FLOWS)
        assert {frame: through(here, driver, frame) for frame in FLOWS} == before
        assert here.count(AccelCounter.FAST) == len(FLOWS)
        # Another flow of the same VIP has no rule, so it arrives on queue 0.
        through(here, driver, tcp("198.18.1.4", "198.18.10.1"))
        assert here.count(AccelCounter.FAST) == len(FLOWS)
        here.engine.remove_all()
        assert not driver.rules
        assert {frame: through(here, driver, frame) for frame in FLOWS} == before
        assert here.count(AccelCounter.FAST) == len(FLOWS)
    assert [path.name for path in tmp_path.iterdir() if "ntuple" in path.name] == []


@pytest.mark.usefixtures("namespace", "_one_cpu")
def test_a_flow_that_the_nic_refuses_goes_on_unaccelerated(tmp_path: Path, driver: Any) -> None:
    driver.refused = {6: errno.EINVAL}  # UDP over IPv6
    with link(tmp_path, driver, "dest-id") as here:
        before = {frame: through(here, driver, frame) for frame in FLOWS for _ in range(2)}
        here.engine.poll()
        assert len(driver.rules) == len(FLOWS) - 1
        assert {frame: through(here, driver, frame) for frame in FLOWS} == before
        assert here.count(AccelCounter.FAST) == len(FLOWS) - 1


@pytest.mark.usefixtures("namespace", "_one_cpu")
def test_a_nic_without_queues_to_spare_is_left_out(tmp_path: Path, driver: Any, caplog: Any) -> None:
    driver.queues = 1
    with link(tmp_path, driver, "dest-id") as here:
        assert {through(here, driver, FLOWS[0]) for _ in range(3)}
        here.engine.poll()
        assert not driver.rules
        assert here.count(AccelCounter.FAST) == 0
    assert "nic_ntuple cannot set marks here: going on without" in caplog.text
