# SPDX-License-Identifier: Apache-2.0
"""The daemon with a NIC in front of it: real frames over veth, clean stops, kills, restarts, and who else is there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nfcore.api.locks import FOLDER
from nfcore.bench.testbed import run
from nfcore.errors import HostError
from nfcore.kernel import Program
from tests.kernel.katran_accel.world import CLIENT, NIC, tcp, udp
from tests.kernel.network import send_frame
from tests.kernel.site import PATIENCE, Site, command_line, eventually, ip, nfcore

FLOWS = {
    "v4": tcp("198.18.1.2", "198.18.10.1"),
    "v6": udp("2001:db8:1::2", "2001:db8:10::1"),
}


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize("events", ["ringbuf", "perf"])
@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_a_flow_goes_to_hardware_and_is_sent_the_same_way(site: Site, strategy: str, events: str, family: str) -> None:
    frame = FLOWS[family]
    with site.running(site.config(strategy=strategy, events=events)):
        slow = [site.exchange(frame) for _ in range(3)]
        assert eventually(lambda: site.metric("nfcore_flows", state="installed")) == 1
        before = site.metric("nfcore_packets_total", path="fast")
        fast = [site.exchange(frame) for _ in range(5)]
        assert set(slow) == set(fast)
        assert site.metric("nfcore_packets_total", path="fast") - before == 5
        assert site.metric("nfcore_softnic_packets_total", kind="marked") == 5
    assert site.rules() == 0


@pytest.mark.parametrize("strategy", ["flow-id", "dest-id"])
def test_an_idle_flow_leaves_hardware_and_comes_back(site: Site, strategy: str) -> None:
    frame = FLOWS["v4"]
    with site.running(site.config(strategy=strategy, idle_timeout="400ms")):
        first = site.exchange(frame)
        for _ in range(2):
            site.exchange(frame)
        assert eventually(lambda: site.metric("nfcore_ended_total", reason="idle")) == 1
        assert eventually(lambda: site.rules() == 0)
        assert eventually(lambda: site.metric("nfcore_flows", state="refused") == 1)
        assert site.exchange(frame) == first
        # The report comes after twice as many packets as the time before, then the rule is back.
        assert eventually(lambda: site.exchange(frame) and site.rules())
        assert site.exchange(frame) == first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_daemon_leaves_nothing(site: Site, number: int) -> None:
    daemon = site.start(site.config())
    for _ in range(3):
        site.exchange(FLOWS["v4"])
    assert eventually(site.rules) == 1
    program = site.program()
    assert program is not None
    daemon.send_signal(number)
    assert daemon.wait(PATIENCE) == 0
    assert (site.program(), site.rules()) == (None, 0)
    assert sorted(path.name for path in site.folder.iterdir()) == ["nf.toml", "nic"]
    assert eventually(lambda: gone(program))
    claims = FOLDER.iterdir() if FOLDER.is_dir() else ()
    assert str(daemon.pid) not in [claim.read_text().strip() for claim in claims]


def test_sighup_lets_a_daemon_without_a_terminal_read_its_configuration_again(site: Site) -> None:
    config = site.config()
    with site.running(config) as daemon:
        program = site.program()
        config.write_text(site.config().read_text().replace('"198.18.20.11"', '"198.18.20.14"'))
        daemon.send_signal(signal.SIGHUP)
        assert eventually(lambda: "198.18.20.14" in reals(site))
        assert "198.18.20.11" not in reals(site)
        assert (daemon.poll(), site.program()) == (None, program)
        config.write_text("[nf")
        daemon.send_signal(signal.SIGHUP)
        assert eventually(lambda: "the configuration stays as it was" in site.daemons.logged())
        assert "198.18.20.14" in reals(site)


def reals(site: Site) -> set[str]:
    (metric,) = [each for each in site.metrics().families if each["name"] == "nfcore_real_packets_total"]
    return {sample["labels"]["real"] for sample in metric["samples"]}


def gone(program: int) -> bool:
    try:
        Program.from_id(program).close()
    except HostError:
        return True
    return False


def test_a_signal_before_it_is_ready_leaves_nothing(site: Site) -> None:
    command = command_line("run", str(site.config()))
    for delay in (0.3, 0.6, 0.9, 1.2):
        daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        daemon.send_signal(signal.SIGTERM)
        _, said = daemon.communicate(timeout=PATIENCE)
        assert "Traceback" not in said
        assert site.program() is None
        assert not site.socket.exists()


@pytest.mark.parametrize(("strategy", "pinned"), [("dest-id", False), ("dest-id", True), ("flow-id", True)])
def test_a_killed_daemons_rules_work_on_and_the_next_one_takes_them_over(
    site: Site, strategy: str, pinned: bool
) -> None:
    frame = FLOWS["v4"]
    config = site.config(strategy=strategy, katran=f'pin_dir = "{site.folder / "pins"}"' if pinned else "")
    daemon = site.start(config)
    sent = {site.exchange(frame) for _ in range(3)}
    assert eventually(site.rules) == 1
    killed = site.program()
    daemon.kill()
    daemon.wait()
    sent |= {site.exchange(frame) for _ in range(5)}
    with site.running(config):
        assert site.program() not in (None, killed)
        assert site.metric("nfcore_adopted_total") == site.rules() == 1
        before = site.metric("nfcore_packets_total", path="fast")
        sent |= {site.exchange(frame) for _ in range(5)}
        assert site.metric("nfcore_packets_total", path="fast") - before == 5
    assert len(sent) == 1
    assert (site.program(), site.rules()) == (None, 0)


@pytest.mark.parametrize("strategy", ["dest-id", "flow-id"])
def test_rules_whose_marks_mean_something_else_now_are_removed(site: Site, strategy: str) -> None:
    config = site.config(strategy=strategy)
    daemon = site.start(config)
    for _ in range(3):
        site.exchange(FLOWS["v4"])
    assert eventually(site.rules) == 1
    daemon.kill()
    daemon.wait()
    # Another real in front: every number behind it means another one. flow-id's entries died with the maps.
    config.write_text(config.read_text().replace("reals = [{", 'reals = [{ address = "198.18.20.9" }, {', 1))
    with site.running(config):
        assert (site.metric("nfcore_stale_removed_total"), site.rules()) == (1, 0)


def test_cleanup_removes_what_a_killed_daemon_left(site: Site) -> None:
    config = site.config()
    daemon = site.start(config)
    refused = nfcore("cleanup", str(config))
    assert refused.returncode == 1
    assert "the daemon is running" in refused.stderr
    for _ in range(3):
        site.exchange(FLOWS["v4"])
    assert eventually(site.rules) == 1
    daemon.kill()
    daemon.wait()
    cleaned = nfcore("cleanup", str(config))
    assert cleaned.returncode == 0, cleaned.stderr
    assert "detached program" in cleaned.stdout and "removed 1 rules from eth1" in cleaned.stdout
    assert (site.program(), site.rules()) == (None, 0)
    assert sorted(path.name for path in site.folder.iterdir()) == ["nf.toml", "nic"]
    assert nfcore("cleanup", str(config)).stdout == "nothing was left\n"


def test_cleanup_does_what_it_can_without_the_interface(site: Site) -> None:
    config = site.config(katran=f'pin_dir = "{site.folder / "pins"}"')
    daemon = site.start(config)
    daemon.kill()
    daemon.wait()
    ip("link", "set", "eth1", "name", "eth9")
    cleaned = nfcore("cleanup", str(config), "--json")
    assert cleaned.returncode == 0, cleaned.stderr
    assert any("removed pin" in line for line in json.loads(cleaned.stdout)["removed"])
    assert not (site.folder / "pins").exists()


def test_another_socket_does_not_make_another_owner(site: Site) -> None:
    config = site.config(katran=f'pin_dir = "{site.folder / "pins"}"')
    other = site.folder / "other.toml"
    other.write_text(config.read_text().replace("nf.sock", "other.sock"))
    with site.running(config):
        for _ in range(3):
            site.exchange(FLOWS["v4"])
        assert eventually(site.rules) == 1
        pins = sorted(path.name for path in (site.folder / "pins").iterdir())
        for command in ("run", "cleanup"):
            refused = nfcore(command, str(other))
            assert refused.returncode == 1
            assert "interface eth1 is in use by another nfcore" in refused.stderr
        assert site.rules() == 1
        assert sorted(path.name for path in (site.folder / "pins").iterdir()) == pins
        assert not (site.folder / "other.sock.state").exists()


@pytest.mark.usefixtures("_one_cpu")
def test_pinned_connections_do_not_outlive_the_numbers_of_their_reals(site: Site) -> None:
    config = site.config(katran=f'pin_dir = "{site.folder / "pins"}"')
    frames = [tcp("198.18.1.2", "198.18.10.1", sport=port) for port in range(41000, 41010)]
    with site.running(config):
        for frame in frames:
            site.exchange(frame)
    changed = config.read_text().replace('reals = [{ address = "198.18.20.11" }, ', "reals = [")
    config.write_text(changed)
    with site.running(config):
        # Without the first real every number means another one: nobody may go to the IPv6 VIP's.
        for frame in frames:
            assert site.exchange(frame)[12:14] == b"\x08\x00"
    assert nfcore("cleanup", str(config)).returncode == 0


def test_a_folder_with_files_is_not_hidden_under_pins(site: Site) -> None:
    pins = site.folder / "files"
    pins.mkdir()
    (pins / "mine").write_text("mine")
    refused = nfcore("run", str(site.config(katran=f'pin_dir = "{pins}"')))
    assert refused.returncode == 1
    assert "would hide what it holds" in refused.stderr
    assert (pins / "mine").read_text() == "mine"


@pytest.mark.parametrize("plugins", ['"katran_accel", "stats"', '"katran_accel", "marking", "stats"'])
def test_without_a_backend_it_balances_unaccelerated(site: Site, plugins: str) -> None:
    config = site.config()
    text = config.read_text().replace('"katran_accel", "marking", "softnic", "stats"', plugins)
    text = text.replace('offload = ["softnic"]', 'offload = ["none"]')
    lines = [line for line in text.splitlines() if not line.startswith(("[softnic]", "pins"))]
    if "marking" not in plugins:
        lines = [line for line in lines if not line.startswith(("[marking]", "strategy", "quarantine"))]
    config.write_text("\n".join(lines))
    with site.running(config):
        assert len({site.exchange(FLOWS["v4"]) for _ in range(5)}) == 1
        assert site.metric("nfcore_packets_total", path="slow") == 5


def test_a_start_that_fails_leaves_nothing(site: Site) -> None:
    assert nfcore("softnic", "remove", "--pin", str(site.nic)).returncode == 0
    config = site.config(katran=f'pin_dir = "{site.folder / "pins"}"')
    assert nfcore("run", str(config)).returncode == 1
    assert site.program() is None
    ip("route", "del", "default")
    assert nfcore("run", str(config)).returncode == 1
    assert not (site.folder / "pins").exists()
    assert not site.socket.exists()


def test_where_rules_are_of_no_use_it_says_so_once_and_balances(site: Site) -> None:
    # A veth's own ingress: filters there run after XDP, if this kernel has flower at all.
    config = site.config()
    text = config.read_text().replace('"softnic", "stats"', '"tc_offload", "stats"')
    text = text.replace('offload = ["softnic"]', 'offload = ["tc_offload"]')
    config.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("[softnic]", "pins"))))
    qdiscs = run("tc", "qdisc")
    daemon = site.start(config)
    assert len({site.exchange(FLOWS["v4"]) for _ in range(12)}) == 1
    assert site.metric("nfcore_packets_total", path="slow") == 12
    assert eventually(lambda: site.metric("nfcore_not_offloaded_total", reason="no_backend"))
    daemon.terminate()
    assert daemon.wait(PATIENCE) == 0
    assert site.daemons.logged().count("tc_offload cannot set marks here: going on without") == 1
    assert run("tc", "qdisc") == qdiscs


def test_a_nic_that_is_not_there_can_be_gone_without(site: Site) -> None:
    assert nfcore("softnic", "remove", "--pin", str(site.nic)).returncode == 0
    config = site.config()
    refused = nfcore("run", str(config))
    assert refused.returncode == 1
    assert "there is no softnic" in refused.stderr
    config.write_text(config.read_text().replace('offload = ["softnic"]', 'offload = ["softnic", "none"]'))
    with site.running(config):
        assert site.metric("nfcore_flows") == 0
        said = site.daemons.logged()
        # Once, with what to do about it; and the word "ready" names no offload that there is not.
        assert said.count("cannot set marks here") == said.count("there is no softnic") == 1
        assert "eth1: softnic cannot set marks here for now: it is asked again (" in said
        assert "\nready: eth1: katran_accel, no offload; unaccelerated; socket " in said
        assert "more time" not in said
        site.make_nic()  # and is used once it is there

        def offloaded() -> bool:
            for _ in range(3):
                site.exchange(FLOWS["v4"])
            return site.rules() == 1

        assert eventually(offloaded)


def test_a_second_daemon_is_refused_and_harms_nothing(site: Site) -> None:
    config = site.config()
    with site.running(config):
        program = site.program()
        second = nfcore("run", str(config))
        assert second.returncode == 1
        assert "a daemon is running already" in second.stderr and "Traceback" not in second.stderr
        assert site.program() == program
        assert site.exchange(FLOWS["v4"])


def test_somebody_elses_program_is_left_alone(site: Site) -> None:
    others = nfcore("softnic", "create", "--wire", "eth1", "--port", "net0", "--pin", str(site.folder / "other"))
    assert others.returncode == 0, others.stderr
    program = site.program()
    refused = nfcore("run", str(site.config()))
    assert refused.returncode == 1
    assert "eth1" in refused.stderr and "softnic_wire" in refused.stderr and "Traceback" not in refused.stderr
    assert site.program() == program
    assert nfcore("softnic", "remove", "--pin", str(site.folder / "other")).returncode == 0


@pytest.mark.usefixtures("_one_cpu")
def test_pins_outlive_the_daemon_and_are_taken_over(site: Site) -> None:
    pins = site.folder / "pins"
    config = site.config(katran=f'pin_dir = "{pins}"')
    with site.running(config):
        sent = {site.exchange(FLOWS["v4"]) for _ in range(2)}
        assert {"balancer_ingress", "vip_map", "ch_rings", "hw_accel_targets"} <= {p.name for p in pins.iterdir()}
    assert site.program() is None
    assert (pins / "vip_map").exists()
    with site.running(config):
        # One packet more is the third on this CPU: the connection table was taken over.
        sent.add(site.exchange(FLOWS["v4"]))
        assert eventually(site.rules) == 1
    assert len(sent) == 1
    smaller = site.config(katran=f'pin_dir = "{pins}"\n').read_text().replace("lru_size = 4096", "lru_size = 2048")
    config.write_text(smaller)
    refused = nfcore("run", str(config))
    assert refused.returncode == 1
    assert "2048" in refused.stderr and "4096" in refused.stderr and "Traceback" not in refused.stderr
    assert nfcore("cleanup", str(config)).returncode == 0
    assert not pins.exists()


def test_what_is_missing_is_named(site: Site) -> None:
    config = site.config()
    ip("route", "del", "default")
    failed = nfcore("run", str(config))
    assert failed.returncode == 1
    assert "gateway_mac" in failed.stderr and "no default route" in failed.stderr
    ip("link", "set", "eth1", "name", "eth9")
    failed = nfcore("run", str(config))
    assert failed.returncode == 1
    assert "interfaces[0].name: there is no interface 'eth1'" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_other_traffic_reaches_the_stack(site: Site) -> None:
    with site.running(site.config()):
        ip("neighbour", "add", "198.18.2.9", "lladdr", CLIENT, "dev", "eth1")
        ping = Ether(src=CLIENT, dst=NIC) / IP(src="198.18.2.9", dst="198.18.2.2") / ICMP(id=77) / b"payload"
        site.network.send(bytes(ping))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = Ether(site.network.recv(4096))
            if ICMP in answer and answer[ICMP].type == 0 and answer[ICMP].id == 77:
                return
        pytest.fail("no answer to the ping")


def test_a_large_datagram_reaches_the_balancers_own_address(site: Site) -> None:
    """3,000 bytes of UDP in three fragments; a service on the host itself, which the kernel puts together."""
    ip("address", "add", "198.18.0.1/32", "dev", "eth1")
    payload = bytes(range(250)) * 12
    datagram = IP(src="198.18.1.2", dst="198.18.0.1", id=7) / UDP(sport=5000, dport=5001) / Raw(payload)
    with site.running(site.config()), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("198.18.0.1", 5001))
        service.settimeout(PATIENCE)
        dropped = site.metric("nfcore_drops_total", reason="malformed")
        for part in fragment(datagram, 1400):
            send_frame(site.network, bytes(Ether(src=CLIENT, dst=NIC) / part))
        assert service.recv(4096) == payload
        assert site.metric("nfcore_drops_total", reason="malformed") == dropped
