# SPDX-License-Identifier: Apache-2.0
"""Several interfaces, listed destinations, and starts without a way: daemons of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.site import nfcore, vip_toml

from .routers import CLIENT, VIP, open_routers
from .world import tcp

pytestmark = pytest.mark.slow
REAL = "198.18.20.11"
FRAME = tcp(CLIENT, VIP)
STATION = "02:00:5e:00:02:99"


def test_listed_destinations_are_taken_and_answered_from_the_interface(tmp_path: Path) -> None:
    virtual = "00:00:5e:00:01:0a"
    with open_routers(tmp_path) as routers:
        routers.ip("route add default via 198.18.2.1 dev eth1")
        with routers.daemons.running(routers.config(f'destination_mac = ["own", "{virtual}"]\n{vip_toml(REAL)}')):
            for to in (virtual, routers.own_mac()):
                sent = routers.send(FRAME, to=to)
                assert sent is not None and (sent.source, sent.to) == (routers.own_mac(), routers.mac())
            assert routers.send(FRAME, to="ff:ff:ff:ff:ff:ff") is None


def test_each_interface_has_its_own_gateway_and_address(tmp_path: Path) -> None:
    with open_routers(tmp_path) as routers:
        routers.ip("route add default via 198.18.2.1 dev eth1")
        routers.ip("route add default via 198.18.3.1 dev eth2 metric 200")
        config = routers.config(f'destination_mac = "any"\n{vip_toml(REAL)}', interfaces=("eth1", "eth2"))
        with routers.daemons.running(config):
            for link in (1, 2):
                sent = routers.send(FRAME, link)
                assert sent is not None and (sent.source, sent.to) == (routers.own_mac(link), routers.mac(link))
            foreign = routers.send(FRAME, 2, to="ff:ff:ff:ff:ff:ff")
            assert foreign is not None and foreign.source == routers.own_mac(2)
            routers.ip(f"neighbour replace 198.18.3.1 lladdr {STATION} dev eth2")
            assert routers.goes_to(STATION, FRAME, link=2)
            assert routers.goes_to(routers.mac(1), FRAME)
            told = routers.doctor(config)
            assert STATION in told["katran_accel: gateway of eth2"][1]
            routers.config(
                f'destination_mac = "any"\ngateway_mac = {{ eth2 = "02:00:5e:00:02:55" }}\n{vip_toml(REAL)}',
                interfaces=("eth1", "eth2"),
            )
            assert nfcore("reload", str(config)).returncode == 0
            assert routers.goes_to("02:00:5e:00:02:55", FRAME, link=2)
            assert routers.goes_to(routers.mac(1), FRAME)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ((), ["eth1", REAL, "no default route"]),
        (("default via 198.18.3.1 dev eth2",), ["eth1", REAL, "no default route"]),
        (("default via 198.18.2.99 dev eth1",), ["eth1", "198.18.2.99", "does not answer"]),
    ],
    ids=["none", "another interface", "no answer"],
)
def test_a_start_without_a_way_is_refused_by_name(tmp_path: Path, routes: tuple[str, ...], words: list[str]) -> None:
    with open_routers(tmp_path) as routers:
        for route in routes:
            routers.ip(f"route add {route}")
        done = nfcore("run", str(routers.config(vip_toml(REAL))))
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert all(word in done.stderr for word in [*words, "gateway_mac"]), done.stderr


def peak_memory(pid: int) -> int:
    """Bytes that a process has had in memory at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_full_table_of_routes_is_not_read(tmp_path: Path) -> None:
    """With 60,000 routes a start takes no more memory, and a change among them is followed."""
    hosts = [f"198.19.{number >> 8}.{number & 255}" for number in range(60_000)]
    batch = tmp_path / "routes"
    batch.write_text("".join(f"route add {host} via 198.18.2.1 dev eth1\n" for host in hosts))
    with open_routers(tmp_path) as routers:
        routers.ip("route add default via 198.18.2.1 dev eth1")
        config, peaks = routers.config(vip_toml(hosts[-1])), []
        for more in (False, True):
            if more:
                routers.ip(f"-batch {batch}")
            with routers.daemons.running(config) as daemon:
                assert routers.goes_to(routers.mac(), FRAME)
                peaks.append(peak_memory(daemon.pid))
                if more:
                    routers.ip(f"neighbour replace 198.18.2.9 lladdr {STATION} dev eth1")
                    routers.ip(f"route replace {hosts[-1]} via 198.18.2.9 dev eth1")
                    assert routers.goes_to(STATION, FRAME)
        # A route as a Python object takes some hundred bytes.
        assert peaks[1] - peaks[0] < len(hosts) * 100
