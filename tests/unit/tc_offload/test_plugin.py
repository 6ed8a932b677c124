# SPDX-License-Identifier: Apache-2.0
"""tc_offload's table in the TOML: accepted and refused values, and the error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfcore.api.config import Config
from nfcore.api.rules import Device
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context
from nfcore.errors import ConfigError, HostError
from nfcore.hooks.manager import PluginManager
from nfcore.kernel.ethtool import LinkFacts
from nfcore.plugins.tc_offload import TcOffloadTable, _settings
from nfcore.plugins.tc_offload.probe import advise_switch

HEAD = """
[nf]
plugins = ["katran_accel", "marking", "tc_offload"]
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
offload = ["tc_offload", "none"]
[[interfaces]]
name = "eth2"
chain = ["katran_accel"]
offload = ["tc_offload"]
[[interfaces]]
name = "eth7"
chain = ["katran_accel"]
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.11" }]
"""


def load(tmp_path: Path, text: str) -> tuple[Config, PluginManager]:
    path = tmp_path / "nf.toml"
    path.write_text(HEAD + text)
    plugins = PluginManager()
    return load_config(path, plugins), plugins


def test_without_a_table_the_defaults_hold(tmp_path: Path) -> None:
    config, _ = load(tmp_path, "")
    table = config.sections["tc_offload"]
    assert isinstance(table, TcOffloadTable)
    assert (table.prio, table.skip_sw, table.last_used, table.devices) == (6000, "auto", False, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prio = 0", "tc_offload.prio: is 0; input should be greater than or equal to 1"),
        ("prio = 65521", "tc_offload.prio: is 65521; input should be less than or equal to 65520"),
        ('skip_sw = "maybe"', "tc_offload.skip_sw: is 'maybe'; input should be 'auto', 'on' or 'off'"),
        ("pirio = 1", "tc_offload.pirio: unknown key; did you mean 'prio'?"),
        ("devices.eth1.filter = 1", "tc_offload.devices.eth1.filter: unknown key; did you mean 'filter_on'?"),
        ('devices."eth0.100".x = 1', 'tc_offload.devices."eth0.100".x: unknown key; known here: direction, filter_on'),
        ("devices.eth1 = 1", "tc_offload.devices.eth1: is 1; should be a table (a dictionary of keys and values)"),
        (
            'devices."a b" = {}',
            'tc_offload.devices."a b": is no key for this table: should be the name of an interface: '
            "at most 15 characters, no '/' and no white space",
        ),
        (
            "devices.eth1.filter_on = '/'",
            "tc_offload.devices.eth1.filter_on: is '/'; should be the name of an interface: at most 15 characters, "
            "no '/' and no white space",
        ),
        (
            'devices.eth1.direction = "egress"',
            "tc_offload.devices.eth1.direction: is 'egress'; what leaves eth1 does not pass its XDP program: "
            "set filter_on to its veth peer",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[tc_offload]\n{text}\n")
    assert [str(problem) for problem in caught.value.problems] == [said]


def test_devices_of_the_table_must_be_offloaded(tmp_path: Path) -> None:
    config, plugins = load(tmp_path, '[tc_offload.devices.eth7]\nfilter_on = "lo"\n')
    context = make_context(config, plugins, [Device("eth1", 4, ("tc_offload",)), Device("eth7", 5)], tracing=True)
    assert list(_settings(make_context(load(tmp_path, "")[0], plugins, context.devices, tracing=True)))
    with pytest.raises(ConfigError, match=r'eth7: belongs to no interface with offload = \["tc_offload"\]; .*eth1'):
        list(_settings(context))


def test_an_interface_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    config, plugins = load(tmp_path, '[tc_offload.devices.eth1]\nfilter_on = "nowhere0"\ndirection = "egress"\n')
    context = make_context(config, plugins, [Device("eth1", 4, ("tc_offload",))], tracing=True)
    with pytest.raises(HostError, match=r"tc_offload\.devices\.eth1\.filter_on: there is no interface 'nowhere0'"):
        list(_settings(context))


def test_rules_on_the_peer_may_be_evaluated_by_the_kernel(tmp_path: Path) -> None:
    text = (
        '[tc_offload]\nprio = 9\nlast_used = true\n[tc_offload.devices.eth1]\nfilter_on = "lo"\ndirection = "egress"\n'
    )
    config, plugins = load(tmp_path, text)
    devices = [Device("eth1", 4, ("tc_offload",)), Device("eth2", 5, ("tc_offload",)), Device("eth7", 6)]
    (_, first), (_, second) = list(_settings(make_context(config, plugins, devices, tracing=True)))
    assert (first.filter_on, first.ifindex, first.direction, first.software_helps) == ("lo", 1, "egress", True)
    assert (second.filter_on, second.ifindex, second.direction, second.software_helps) == ("eth2", 5, "ingress", False)
    assert (first.prio, first.terse) == (9, False)


@pytest.mark.parametrize(
    ("features", "fixed", "words"),
    [
        ({"hw-tc-offload": False}, (), "hw-tc-offload is off: ethtool -K eth1 hw-tc-offload on"),
        ({"hw-tc-offload": True}, (), "hw-tc-offload is on, so it is the driver's own refusal"),
        ({"hw-tc-offload": False}, ("hw-tc-offload",), "it cannot offload rules of TC"),
        ({}, (), "it cannot offload rules of TC"),
    ],
)
def test_to_switch_a_feature_on_is_advised_only_where_that_can_be_done(
    features: dict[str, bool], fixed: tuple[str, ...], words: str
) -> None:
    facts = LinkFacts(up=True, mtu=1500, driver="", features=features, fixed=frozenset(fixed))
    advice = advise_switch("eth1", facts)
    assert advice.startswith(words)
    assert ("ethtool" in advice) == ("ethtool" in words)
