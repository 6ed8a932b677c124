# SPDX-License-Identifier: Apache-2.0
"""Entries over restarts, kills and reloads of the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.errors import HostError
from tests.kernel.site import eventually, succeed

from .chained_site import ChainedSite, exact, frame, masked, open_chained_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ChainedSite]:
    with open_chained_site(tmp_path) as opened:
        yield opened


def names(site: ChainedSite) -> set[str]:
    return {row["name"] for row in site.request("flow.list")["entries"]}


def test_orders_and_their_counts_outlive_the_daemon(site: ChainedSite, strategy: str) -> None:
    config = site.chain_config(strategy=strategy, actions=f'pin_dir = "{site.pins}"')
    daemon = site.start(config)
    site.change(
        exact("kept", action="drop"), exact("seen", 6, action="count"), masked("gone", 6, action="drop", ttl="1h")
    )
    assert site.ready("kept")
    site.send(*[frame()] * 3, frame(6))
    assert site.counted("kept", 3)
    daemon.kill()
    daemon.wait()
    # The NIC and the program work on.
    site.send(*[frame()] * 2, frame(6))
    with site.running(config):
        assert site.ready("kept")
        site.send(*[frame()] * 4)
        assert site.counted("kept", 9)
        assert site.counted("seen", 2)
        assert names(site) == {"kept", "seen", "gone"}
    with site.running(config):
        assert site.ready("kept")
        assert site.counted("kept", 9)
        assert site.counted("seen", 2)
        assert names(site) == {"kept", "seen", "gone"}
        site.request("flow.clear")
    with site.running(config):
        assert names(site) == set()


def test_what_replaces_an_entry_of_an_earlier_run_counts_its_own_packets(site: ChainedSite, strategy: str) -> None:
    # Rules are taken over when marks mean what they meant before: the same maps, the same targets besides drops.
    pins = {"balancer": f'pin_dir = "{site.balancer_pins}"', "actions": f'pin_dir = "{site.pins}"'}
    config = site.chain_config(strategy=strategy, **pins)
    daemon = site.start(config)
    site.change(exact("old", action="drop"))
    assert site.ready("old")
    site.send(*[frame()] * 3)
    assert site.counted("old", 3)
    daemon.kill()
    daemon.wait()
    with site.running(config):
        assert site.metric("nfcore_adopted_total") == 1
        assert site.ready("old")
        site.change(exact("new", action="drop"), delete=("old",))
        assert site.ready("new")
        site.send(frame())
        assert site.counted("new", 1)


def test_cleanup_leaves_nothing(site: ChainedSite) -> None:
    config = site.chain_config(actions=f'pin_dir = "{site.pins}"')
    daemon = site.start(config)
    site.change(exact("kept", action="drop"))
    assert site.ready("kept")
    daemon.kill()
    daemon.wait()
    succeed("cleanup", str(config))
    assert site.rules() == 0
    assert site.program() is None
    assert sorted(path.name for path in site.folder.iterdir()) == ["nf.toml", "nic"]


def test_a_reload_changes_the_entries_of_the_toml_alone(site: ChainedSite) -> None:
    drop = '[[flow_actions.flows]]\nname = "{}"\nsrc = "{}"\naction = "drop"\n'
    first = site.chain_config(actions=drop.format("one", "198.18.1.0/24") + drop.format("two", "198.18.3.0/24"))
    with site.running(first):
        site.change(exact("ordered", 6, action="drop"))
        assert site.ready("one")
        site.send(*[frame()] * 3)
        assert site.counted("one", 3)
        site.chain_config(actions=drop.format("one", "198.18.1.0/24") + drop.format("three", "198.18.4.0/24"))
        succeed("reload", "--socket", str(site.socket))
        assert names(site) == {"one", "three", "ordered"}
        # What has not changed keeps its rule and its counters.
        assert site.entry("one")["packets"] == 3
        site.chain_config(actions=drop.format("one", "198.18.1.1/24"))
        with pytest.raises(HostError, match=r"flow_actions\.flows\[0\]\.src"):
            site.request("reload")
        site.chain_config(actions=drop.format("ordered", "198.18.1.0/24"))
        with pytest.raises(HostError, match="of an application"):
            site.request("reload")
        assert names(site) == {"one", "three", "ordered"}
        site.send(frame())
        assert site.counted("one", 4)
        site.chain_config(actions="")
        succeed("reload", "--socket", str(site.socket))
        assert eventually(lambda: site.balanced(frame()) == frame()[14:])


def test_another_number_of_entries_keeps_entries_and_counts(site: ChainedSite) -> None:
    actions = f'pin_dir = "{site.pins}"\nentries = '
    with site.running(site.chain_config(actions=f"{actions} 1000")):
        site.change(exact("kept", action="drop"), exact("seen", 6, action="count", offload=False))
        assert site.ready("kept")
        site.send(*[frame()] * 3, *[frame(6)] * 2)
        assert site.counted("kept", 3) and site.counted("seen", 2)
    for entries in (5000, 10):
        with site.running(site.chain_config(actions=f"{actions} {entries}")):
            assert names(site) == {"kept", "seen"}
            assert site.counted("kept", 3) and site.counted("seen", 2)
