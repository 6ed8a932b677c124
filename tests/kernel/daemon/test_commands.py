# SPDX-License-Identifier: Apache-2.0
"""What an operator asks and orders: flows, explain, offload off and on; and the ends of connections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nfcore.api.flows import FlowMatch
from tests.kernel.site import REALS, SIX, Site, eventually, nfcore, succeed, vip_toml
from tests.kernel.traffic import Rounds, flow_frames, flow_text

pytestmark = pytest.mark.usefixtures("_one_cpu")
EXCLUDED = "198.18.1.3"


@pytest.fixture
def rounds(site: Site) -> Iterator[Rounds]:
    with Rounds(flow_frames(8)) as opened:
        yield opened


def explain(site: Site, flow: str) -> dict[str, Any]:
    answer: dict[str, Any] = site.request("explain", flow=flow)
    return answer


def nic_marks(site: Site) -> dict[str, int]:
    """Flow → mark, as the NIC has it."""
    with site.backend() as nic:
        rules = nic.dump()["rule"]
    return {str(FlowMatch.from_key(rule["key"], int(rule["family"]))): int(rule["mark"]) for rule in rules}


@pytest.mark.slow
def test_explain_agrees_with_the_nic(site: Site, rounds: Rounds, strategy: str) -> None:
    config = site.config(strategy=strategy, offload=f'exclude = ["{EXCLUDED}"]')
    with site.running(config), Rounds(flow_frames(2, client=EXCLUDED)) as refused:
        rounds.offload(site)
        refused.several(3)
        held = nic_marks(site)
        assert len(held) == 8
        for number in range(8):
            answer = explain(site, flow_text(number))
            (found,) = answer["found"]
            assert answer["in_hardware"] and found["in_hardware"]
            assert found["mark"] == held[answer["flow"]] != 0
            assert {found["real"]} == rounds.reals[number]
        printed = succeed("explain", flow_text(0), "--socket", str(site.socket), "--json")
        assert json.loads(printed)["found"][0]["mark"] == held[flow_text(0)]
        words = succeed("explain", flow_text(0), "--config", str(config))
        assert "in hardware" in words and f"mark {held[flow_text(0)]}" in words
        assert eventually(lambda: explain(site, flow_text(0, EXCLUDED))["found"])
        no = explain(site, flow_text(0, EXCLUDED))
        assert (no["in_hardware"], no["found"][0]["state"], no["found"][0]["reason"]) == (False, "refused", "excluded")
        assert "exclude" in succeed("explain", flow_text(0, EXCLUDED), "--config", str(config))
        unknown = explain(site, flow_text(0, "198.18.1.99"))
        assert (unknown["in_hardware"], unknown["found"]) == (False, [])
        assert "min_packets = 3" in unknown["why"]


@pytest.mark.slow
def test_explain_says_what_a_flow_waits_for(site: Site, rounds: Rounds) -> None:
    with site.running(site.config(offload="inserts_per_second = 0.001\ninsert_burst = 1")):
        rounds.several(3)
        assert eventually(lambda: site.metric("nfcore_flows", state="waiting") == 7)
        assert eventually(lambda: site.metric("nfcore_flows", state="installed") == 1)
        states = {}
        for number in range(8):
            (found,) = explain(site, flow_text(number))["found"]
            states[flow_text(number)] = found["state"], found["reason"]
        assert sorted(states.values(), key=str) == [("installed", None), *[("waiting", "budget")] * 7]
        assert {flow for flow, state in states.items() if state[0] == "installed"} == nic_marks(site).keys()
        waiting = next(flow for flow, state in states.items() if state[0] == "waiting")
        assert "inserts_per_second" in succeed("explain", waiting, "--socket", str(site.socket))


@pytest.mark.parametrize("flow", ["", "nonsense", "198.18.1.2 > 198.18.10.1", flow_text(0).replace("/tcp", "/999")])
def test_what_is_no_flow_is_said_to_be_none(site: Site, flow: str) -> None:
    with site.running(site.config()):
        refused = nfcore("explain", flow, "--socket", str(site.socket))
        assert refused.returncode == 2
        assert repr(flow) in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_flows_are_listed_filtered_and_sorted(site: Site, rounds: Rounds) -> None:
    config = site.config(idle_timeout="8s", offload=f'exclude = ["{EXCLUDED}"]')
    with site.running(config), Rounds(flow_frames(3, client=EXCLUDED)) as refused:
        refused.several(3)
        rounds.offload(site)
        # The first flows are sent more often than the others.
        for number in range(8):
            for _ in range(5):
                rounds.run(range(number + 1))
        installed = partial(site.request, "flows", states=["installed"])
        assert eventually(lambda: rounds.run() and all(row["packets"] for row in installed()["flows"]))
        listed = site.flows("--sort", "packets", "--state", "installed")
        assert {row["flow"] for row in listed} == set(nic_marks(site)) == {flow_text(n) for n in range(8)}
        packets = [row["packets"] for row in listed]
        assert packets == sorted(packets, reverse=True) and packets[0] > packets[-1]
        ages = [row["since_seconds"] for row in site.flows("--sort", "age")]
        assert ages == sorted(ages, reverse=True)

        def first_two(*options: str) -> list[str]:
            return [row["flow"] for row in site.flows("--sort", "packets", *options)][:2]

        # The counters may be read again in between.
        assert eventually(lambda: first_two("-n", "2") == first_two())
        assert {row["reason"] for row in site.flows("--state", "refused")} == {"excluded"}
        (real,) = rounds.reals[0]
        mine = site.flows("--match", real, "--state", "installed")
        assert {row["flow"] for row in mine} == {flow_text(n) for n in range(8) if rounds.reals[n] == {real}}
        shown = succeed("flows", str(config), "--state", "installed")
        assert all(flow_text(number) in shown for number in range(8))
        assert "8 of 8 matching flows; in total 8 installed" in shown
        wrong = nfcore("flows", str(config), "--state", "instaled")
        assert wrong.returncode == 2
        assert "instaled" in wrong.stderr and "installed" in wrong.stderr


def test_the_kill_switch_outlives_the_daemon(site: Site, rounds: Rounds, strategy: str) -> None:
    config = site.config(strategy=strategy)
    with site.running(config):
        rounds.offload(site)
        assert "8 flows go back" in succeed("offload", "off", "--config", str(config))
        assert eventually(lambda: site.rules() == 0)
        no_packet_takes_the_fast_path(site, rounds)
        assert "offload on" in explain(site, flow_text(0))["found"][0]["why"]
        assert "switched off" in succeed("flows", str(config))
        assert site.metric("nfcore_ended_total", reason="switched_off") == 8
        assert site.metrics().adds_up()
    with site.running(config):
        no_packet_takes_the_fast_path(site, rounds)
        assert site.metric("nfcore_not_offloaded_total", reason="switched_off") > 0
        assert "is on" in succeed("offload", "on", "--config", str(config))
        rounds.offload(site)
        assert eventually(lambda: site.rules() == 8)
        fast = site.metric("nfcore_packets_total", path="fast")
        rounds.run()
        assert site.metric("nfcore_packets_total", path="fast") - fast == 8
        assert rounds.steady()


def no_packet_takes_the_fast_path(site: Site, rounds: Rounds) -> None:
    fast, slow = (site.metric("nfcore_packets_total", path=path) for path in ("fast", "slow"))
    rounds.several(10)
    assert site.metric("nfcore_packets_total", path="fast") == fast
    assert site.metric("nfcore_packets_total", path="slow") - slow == 80
    assert site.rules() == 0


@pytest.mark.parametrize(
    "command", [["stats"], ["flows"], ["explain", flow_text(0)], ["offload", "off"], ["offload", "on"], ["reload"]]
)
def test_without_a_daemon_each_command_says_so(tmp_path: Path, command: list[str]) -> None:
    refused = nfcore(*command, "--socket", str(tmp_path / "none.sock"))
    assert refused.returncode == 1
    assert f"no daemon answers at {tmp_path / 'none.sock'}" in refused.stderr
    assert "nfcore run" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_the_end_of_a_connection_ends_its_rule(site: Site, rounds: Rounds, strategy: str, flags: str) -> None:
    with site.running(site.config(strategy=strategy)), Rounds(flow_frames(3, flags=flags)) as ending:
        rounds.offload(site)
        before = rounds.run()
        assert ending.run() == {number: before[number] for number in range(3)}
        assert eventually(lambda: site.metric("nfcore_ended_total", reason="ended") == 3)
        assert eventually(lambda: site.rules() == 5)
        assert nic_marks(site).keys() == {flow_text(number) for number in range(3, 8)}
        closed = {flow_text(number) for number in range(3)}
        assert eventually(lambda: {row["flow"] for row in site.flows("--state", "ended")} == closed)
        assert site.metric("nfcore_flows", state="ended") == 3
        assert {row["flow"] for row in site.flows()} == nic_marks(site).keys()
        assert closed < {row["flow"] for row in site.flows("--all")}
        assert "3 ended" in succeed("flows", "--socket", str(site.socket))
        for options, number in (((), 0), (("--all",), 3)):
            top = ("top", "--once", "--json", "--interval", "0.1", "--socket", str(site.socket))
            assert len(closed & {row["flow"] for row in json.loads(succeed(*top, *options))["flows"]}) == number
        assert "its connection was closed" in succeed("explain", flow_text(0), "--socket", str(site.socket))
        rounds.run(range(3, 8))
        assert rounds.steady() and ending.steady()


def test_a_new_connection_with_the_addresses_of_another_goes_where_the_ring_says(
    site: Site, rounds: Rounds, strategy: str
) -> None:
    config = site.config(strategy=strategy)
    with site.running(config), Rounds(flow_frames(8, flags="S")) as opening:
        rounds.offload(site)
        before = rounds.run()
        assert REALS[0] in before.values()
        drained = site.config(strategy=strategy, vips=vip_toml(f"{REALS[0]}*0", *REALS[1:]) + SIX)
        succeed("reload", str(drained))
        assert rounds.run() == before
        opened = opening.run()
        assert REALS[0] not in opened.values()
        moved = sum(opened[number] != before[number] for number in range(8))
        assert moved >= list(before.values()).count(REALS[0])
        assert eventually(lambda: site.metric("nfcore_ended_total", reason="moved") == moved)
        assert eventually(lambda: rounds.run() == opened)
        for _ in range(10):
            assert rounds.run() == opened
        rounds.offload(site)
        assert rounds.run() == opened
        assert not rounds.lost
