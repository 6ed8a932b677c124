# SPDX-License-Identifier: Apache-2.0
"""`nfcore connections` and its methods on a running daemon with an emulated NIC, while packets flow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfcore.kernel import online_cpus
from tests.kernel.katran_accel.world import udp
from tests.kernel.network import send_frame
from tests.kernel.site import REALS, SIX, VIP, Site, begin, eventually, nfcore, succeed, vip_toml, wait_while
from tests.kernel.traffic import Rounds, flow_frames, flow_text

pytestmark = pytest.mark.usefixtures("_one_cpu")
FLOWS = 24
WEB = f"{VIP}:80/tcp"
REFUSED = {
    ("list", "--vip", "198.18.10.7:80/tcp"): f"there is no such VIP; there are: {WEB}, [2001:db8:10::1]:53/udp",
    ("find", "nonsense"): "'nonsense' is not a flow; write it as '198.18.1.2:40000 > 198.18.10.1:80/tcp'",
    ("purge",): "name a VIP, a real, or both",
}


@pytest.fixture
def rounds(site: Site) -> Iterator[Rounds]:
    with Rounds(flow_frames(FLOWS)) as opened:
        yield opened


def ask(site: Site, method: str, **parameters: Any) -> Any:
    return site.request(f"connections.{method}", **parameters)


def say(site: Site, *words: str) -> str:
    """What a command prints."""
    return succeed("connections", *words, "--socket", str(site.socket))


def test_a_drained_real_is_emptied(site: Site, rounds: Rounds, strategy: str) -> None:
    """Its weight becomes 0, its connections stay; purged while packets flow, they go elsewhere. Nothing else moves."""
    with site.running(site.config(strategy=strategy, offload='grace = "100ms"')):
        rounds.offload(site)
        before = rounds.run()
        drained = site.config(
            strategy=strategy, offload='grace = "100ms"', vips=vip_toml(f"{REALS[0]}*0", *REALS[1:]) + SIX
        )
        succeed("reload", str(drained))
        assert rounds.run() == before
        on_it = {number for number, real in before.items() if real == REALS[0]}
        assert 0 < len(on_it) < FLOWS
        listed = json.loads(say(site, "list", "--real", REALS[0], "--json"))
        assert {row["flow"] for row in listed["entries"]} == {flow_text(number) for number in on_it}
        assert all(row["in_hardware"] and row["vip"] == WEB for row in listed["entries"])

        words = ("connections", "purge", "--vip", WEB, "--real", REALS[0], "--yes", "--json")
        removed = json.loads(wait_while(begin(*words, "--socket", str(site.socket)), rounds.run))
        # A flow may have been reported once more meanwhile, and its new rule was ended, too.
        assert removed["rules_ended"] >= len(on_it) and removed["rules_left"] == 0
        after = rounds.run()
        assert REALS[0] not in after.values()
        assert {number: after[number] for number in after.keys() - on_it} == {
            number: before[number] for number in before.keys() - on_it
        }
        assert ask(site, "list", real=REALS[0])["entries"] == []
        assert site.metric("nfcore_ended_total", reason="forgotten") >= len(on_it)
        rounds.offload(site)
        assert rounds.run() == after
        assert site.metrics().adds_up()
        assert not rounds.lost


def test_one_connection_is_found_and_deleted(site: Site, rounds: Rounds, strategy: str) -> None:
    with site.running(site.config(strategy=strategy, offload='grace = "100ms"')):
        rounds.offload(site)
        before = rounds.run()
        found = ask(site, "find", flow=flow_text(3))
        assert (found["vip"], found["ring_real"]) == (WEB, before[3])
        assert {row["real"] for row in found["entries"]} == {before[3]}
        assert "rules" in {row["table"] for row in found["entries"]}
        said = say(site, "find", flow_text(3))
        assert f"the ring of {WEB} leads to {before[3]}" in said and flow_text(3) in said
        removed = ask(site, "delete", flow=flow_text(3))
        assert (removed["rules_ended"], removed["rules_left"]) == (1, 0)
        assert site.rules() == FLOWS - 1
        assert ask(site, "find", flow=flow_text(3))["entries"] == []
        said = say(site, "find", flow_text(3))
        assert f"{flow_text(3)} is in no connection table" in said
        assert rounds.run() == before  # the ring is as it was
        again = succeed("connections", "delete", flow_text(3), str(site.folder / "nf.toml"))
        assert "removed " in again and " entries of connection tables, and ended 0 rules" in again
        rounds.offload(site)
        assert rounds.run() == before and rounds.steady()


def test_pages_fill_and_text(site: Site, rounds: Rounds) -> None:
    config = site.config(offload="min_rate = 1000000")
    with site.running(config):
        rounds.run()
        send_frame(site.network, udp("2001:db8:1::2", "2001:db8:10::1"))
        assert eventually(lambda: ask(site, "list")["total"] == FLOWS + 1)
        seen, after = [], -1
        while after is not None:
            page = ask(site, "list", vip=WEB, limit=5, after=after)
            seen += [row["flow"] for row in page["entries"]]
            after = page["next"]
        assert sorted(seen) == sorted(flow_text(number) for number in range(FLOWS))
        said = succeed("connections", "list", str(config), "--vip", WEB, "-n", "10")
        assert f"10 listed of {FLOWS} that match; {FLOWS + 1} in all tables" in said
        assert said.count(f" > {WEB}") == 10 and "unknown" in said
        tables = json.loads(say(site, "fill", "--json"))["tables"]
        assert [row["cpu"] for row in tables if row["table"] == "cpu"] == online_cpus()
        assert sum(row["tcp"] for row in tables) == FLOWS
        (udp_seen,) = [row for row in tables if row["udp"]]
        assert udp_seen["udp_idle_seconds"]["most"] >= 0
        said = say(site, "fill")
        assert all(f"CPU {cpu} " in said for cpu in online_cpus()) and "fallback" in said and "rules" in said
        asked = nfcore("connections", "purge", "--vip", WEB, "--socket", str(site.socket))
        assert asked.returncode == 1 and f"Remove {FLOWS} entries of connections?" in asked.stderr
        assert ask(site, "list", vip=WEB)["matching"] == FLOWS


def test_what_is_wrong_is_refused(site: Site) -> None:
    with site.running(site.config()):
        for words, message in REFUSED.items():
            refused = nfcore("connections", *words, "--socket", str(site.socket))
            assert refused.returncode == 2, words
            assert message in refused.stderr and "Traceback" not in refused.stderr


def test_without_a_daemon_the_command_says_so(tmp_path: Path) -> None:
    refused = nfcore("connections", "fill", "--socket", str(tmp_path / "none.sock"))
    assert refused.returncode == 1 and "no daemon answers at" in refused.stderr
