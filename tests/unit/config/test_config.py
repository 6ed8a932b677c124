# SPDX-License-Identifier: Apache-2.0
"""The TOML: all mistakes at once, each with its full key, its value and what would be right."""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nfcore.api.config import Config, ConfigTable, Section, format_duration, parse_duration
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkMeaning, StrategyInfo
from nfcore.config.loader import load_config
from nfcore.config.reader import read_toml, write_toml
from nfcore.errors import ConfigError, Problem
from nfcore.hooks import discovery
from nfcore.hooks.manager import PluginManager
from nfcore.testing import Neighbour
from tests.paths import ROOT

DEMO = ROOT / "examples/demo.toml"
GOOD = DEMO.read_text(encoding="utf-8")


def mistakes(tmp_path: Path, text: str | bytes, *overrides: str) -> dict[str, str]:
    """The mistakes in `text`: path → message."""
    path = tmp_path / "bad.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as refused:
        load_config(path, PluginManager(), overrides)
    assert refused.value.exit_status == 2
    assert str(refused.value).startswith(f"{refused.value.source}: ")
    found = {problem.path: problem.message for problem in refused.value.problems}
    assert len(found) == len(refused.value.problems)
    return found


def mistake(tmp_path: Path, *overrides: str) -> tuple[str, str]:
    """The only mistake in the demo's TOML after `overrides`: path, message."""
    found = mistakes(tmp_path, GOOD, *overrides)
    assert len(found) == 1, found
    return found.popitem()


def test_the_demo_is_valid() -> None:
    config = load_config(DEMO, PluginManager())
    assert config.marking.strategy == "dest-id"
    assert config.offload.idle_timeout == 30.0
    assert config.offload.grace == 0.1
    assert config.sections.keys() == {"katran_accel", "softnic", "stats"}


SINGLE = [
    # override, path of the key, what the message must contain
    ("offload.min_packets=0", "offload.min_packets", ["is 0", "greater than or equal to 1"]),
    ("offload.min_packets=40_000", "offload.min_packets", ["is 40000", "less than or equal to 32767"]),
    ("offload.min_packets='8'", "offload.min_packets", ["is '8'", "valid integer"]),
    ("offload.min_packets=true", "offload.min_packets", ["is True", "valid integer"]),
    ("offload.idle_timeout=30", "offload.idle_timeout", ["is 30", "duration with its unit, such as '30s'"]),
    ("offload.idle_timeout=-1s", "offload.idle_timeout", ["is '-1s'", "duration"]),
    ("offload.events=pipe", "offload.events", ["is 'pipe'", "'ringbuf' or 'perf'"]),
    ("offload.min_packet=4", "offload.min_packet", ["unknown key; did you mean 'min_packets'?"]),
    ("offload.zzz=4", "offload.zzz", ["unknown key; known here: ", "idle_timeout"]),
    ("marking.carrier=pigeon", "marking.carrier", ["is 'pigeon'", "'metadata'"]),
    ("marking.width=25", "marking.width", ["is 25", "less than or equal to 24"]),
    ("marking.strategy=dest-if", "marking.strategy", ["'dest-if' is no marking strategy", "did you mean 'dest-id'?"]),
    ("nf.socket=", "nf.socket", ["is ''"]),
    ("nf.sockets='/run/x'", "nf.sockets", ["did you mean 'socket'?"]),
    ("softnic.pins='x'", "softnic.pins", ["is 'x'", "dictionary"]),
    ("katran_accel.gateway_mac=02:00", "katran_accel.gateway_mac", ["is '02:00'", "'auto' or the MAC address"]),
    ("katran_accel.gateway_mac={eth1='02:00'}", "katran_accel.gateway_mac.eth1", ["is '02:00'", "'auto' or the MAC"]),
    ("katran_accel.gateway_mac={eth9='auto'}", "katran_accel.gateway_mac.eth9", ["no interface of [[interfaces]]"]),
    ("katran_accel.destination_mac=all", "katran_accel.destination_mac", ["is 'all'", "'own', 'any', or a list"]),
    ("katran_accel.maglev=3", "katran_accel.maglev", ["is 3", "1 or 2"]),
    ("katran_accel.vip=[]", "katran_accel.vip", ["unknown key; did you mean 'vips'?"]),
    ("katran_accel.vips=[]", "katran_accel.vips", ["is []", "at least 1 item"]),
    ("katran_accel.vips=1", "katran_accel.vips", ["is 1", "list"]),
    ("katran_accel=1", "katran_accel", ["is 1", "should be a table"]),
    ("marking=[]", "marking", ["is []", "should be a table"]),
    ("interfaces='eth1'", "interfaces", ["is 'eth1'", "[[interfaces]]"]),
    ("tc_offload={}", "tc_offload", ["belongs to a plugin that nf.plugins does not name"]),
    ("markings={}", "markings", ["unknown table; did you mean 'marking'?"]),
]


@pytest.mark.parametrize(("override", "path", "texts"), SINGLE, ids=[case[0] for case in SINGLE])
def test_one_mistake(tmp_path: Path, override: str, path: str, texts: list[str]) -> None:
    where, message = mistake(tmp_path, override)
    assert where == path
    for text in texts:
        assert text in message


INTERFACE = [
    ('name = "eth1"\nchain = ["stats"]', "[0].chain[0]", "'stats' is no network function among nf.plugins"),
    ('name = "eth1"\nchain = ["katran_acel"]', "[0].chain[0]", "did you mean 'katran_accel'?"),
    ('name = "eth1"\nchain = []', "[0].chain", "at least 1 item"),
    ('name = "eth1"', "[0].chain", "is missing"),
    ('name = "longer-than-15-characters"\nchain = ["katran_accel"]', "[0].name", "at most 15 characters"),
    ('name = "eth1"\nchain = ["katran_accel"]\noffload = ["mlx9"]', "[0].offload[0]", "'mlx9' is no offload backend"),
    ('name = "e"\nchain = ["katran_accel"]\noffload = ["marking"]', "[0].offload[0]", "known here: none, softnic"),
    ('name = "e"\nchain = ["katran_accel"]\noffload = ["none", "softnic"]', "[0].offload[1]", "would never be used"),
    ('name = "e"\nchain = ["katran_accel"]\noffload = ["softnic", "softnic"]', "[0].offload[1]", "is named twice"),
    ('name = "e"\nchain = ["katran_accel"]\nxdp_mode = "offload"', "[0].xdp_mode", "'native', 'generic' or 'auto'"),
    ('name = "e"\nchain = ["katran_accel"]\nofload = []', "[0].ofload", "did you mean 'offload'?"),
]


@pytest.mark.parametrize(("table", "path", "text"), INTERFACE, ids=[case[2] for case in INTERFACE])
def test_interfaces(tmp_path: Path, table: str, path: str, text: str) -> None:
    head, _, tail = GOOD.partition("[[interfaces]]")
    rest = tail[tail.index("[marking]") :]
    found = mistakes(tmp_path, f"{head}[[interfaces]]\n{table}\n\n{rest}")
    assert found.keys() == {f"interfaces{path}"}
    assert text in found[f"interfaces{path}"]


def test_an_interface_is_named_once(tmp_path: Path) -> None:
    twice = '[[interfaces]]\nname = "eth1"\nchain = ["katran_accel"]\n\n'
    found = mistakes(tmp_path, GOOD.replace("[marking]", f"{twice}[marking]"))
    assert found == {"interfaces[1].name": "'eth1' is already interfaces[0]"}


CHAINS: list[tuple[list[list[str]], dict[str, str]]] = [
    ([["a", "b", "c"], ["b", "c"], ["c"]], {}),
    ([["a", "c"], ["b", "c"]], {}),
    ([["a", "b", "a"]], {"interfaces[0].chain[2]": "'a' is named twice"}),
    (
        [["a", "b"], ["a"]],
        {"interfaces[1].chain[0]": "'a' is the last function, but it comes before 'b' in interfaces[0].chain[0]: what"},
    ),
    (
        [["a"], ["c"], ["b", "a", "c"]],
        {"interfaces[2].chain[1]": "'a' comes before 'c', but it is the last function in interfaces[0].chain[0]: what"},
    ),
    (
        [["a", "b", "c"], ["a", "c"]],
        {"interfaces[1].chain[0]": "'a' comes before 'c', but it comes before 'b' in interfaces[0].chain[0]: what"},
    ),
    ([["a", "d"]], {"interfaces[0].chain[1]": "'d' is no network function among nf.plugins"}),
    ([["a"] * 9], {"interfaces[0].chain": "at most 8 items", "interfaces[0].chain[1]": "'a' is named twice"}),
]


@pytest.mark.parametrize(("chains", "problems"), CHAINS)
def test_chains(tmp_path: Path, chains: list[list[str]], problems: dict[str, str]) -> None:
    plugins = PluginManager()
    for name in "abc":
        plugins.register(Neighbour(name), name)
    tables = [f'[[interfaces]]\nname = "eth{number}"\nchain = {chain}\n' for number, chain in enumerate(chains)]
    head, _, tail = GOOD.partition("[[interfaces]]")
    path = tmp_path / "chains.toml"
    path.write_text("\n".join([head, *tables, tail[tail.index("[marking]") :]]))
    if not problems:
        assert [list(interface.chain) for interface in load_config(path, plugins).interfaces] == chains
        return
    with pytest.raises(ConfigError) as refused:
        load_config(path, plugins)
    found = {problem.path: problem.message for problem in refused.value.problems}
    for where, message in problems.items():
        assert message in found[where]
    assert found.keys() == problems.keys() or len(chains[0]) == 9


PLUGINS = [
    ('["katran_accel", "marking", "softnic", "stat"]', "nf.plugins[3]", "did you mean 'stats'?"),
    ('["katran_accel", "marking", "softnic", "stats", "stats"]', "nf.plugins[4]", "'stats' is named twice"),
    ('["katran_accel", "marking", "softnic", 5]', "nf.plugins[3]", "is 5; input should be a valid string"),
]


@pytest.mark.parametrize(("plugins", "path", "text"), PLUGINS)
def test_plugins(tmp_path: Path, plugins: str, path: str, text: str) -> None:
    where, message = mistake(tmp_path, f"nf.plugins={plugins}")
    assert where == path
    assert text in message


def test_a_plugin_that_is_not_named(tmp_path: Path) -> None:
    found = mistakes(tmp_path, GOOD, 'nf.plugins=["katran_accel", "marking"]')
    assert found["softnic"] == "belongs to a plugin that nf.plugins does not name"
    assert "'softnic' is no offload backend among nf.plugins" in found["interfaces[0].offload[0]"]
    assert len(found) == 2


def test_marking_that_is_not_named(tmp_path: Path) -> None:
    where, message = mistake(tmp_path, 'nf.plugins=["katran_accel", "softnic", "stats"]')
    assert where == "marking.strategy"
    assert message.endswith('add "marking" to nf.plugins')


def test_an_empty_file(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "") == {"nf": "is missing; should be a table [nf] with plugins = [...]"}


def test_all_mistakes_in_one_run(tmp_path: Path) -> None:
    text = GOOD.replace('strategy = "dest-id"', 'strategy = "dest"\nwidht = 3')
    text = text.replace("min_packets = 4", 'min_packets = "4"').replace('protocol = "tcp"', 'protocol = "sctp"', 1)
    text = text.replace('"198.18.20.12"', '"198.18.20.11"').replace('"stats"]', '"statz"]')
    found = mistakes(tmp_path, text)
    assert found.keys() == {
        "nf.plugins[3]",
        "marking.strategy",
        "marking.widht",
        "offload.min_packets",
        "katran_accel.vips[0].protocol",
        "katran_accel.vips[0].reals[1].address",
    }


def installed_with(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Install a plugin as a distribution would, by an entry point."""
    points = discovery.installed() | {name: EntryPoint(name, value, "nfcore.plugins")}
    monkeypatch.setattr(discovery, "installed", lambda: points)


class RaisesInSection:
    """A plugin whose `config_section` raises."""

    @hookimpl
    def config_section(self) -> Section:
        raise LookupError("no schema today")


def test_a_plugin_whose_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_nic.py").write_text("import a_driver_that_nobody_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed_with(monkeypatch, "broken_nic", "broken_nic:Plugin")
    found = mistakes(tmp_path, GOOD + "\n[broken_nic]\nx = 1\n", 'nf.plugins=["katran_accel", "broken_nic", "marking"]')
    assert (
        "'broken_nic' cannot be loaded: ModuleNotFoundError: No module named 'a_driver_that_nobody_"
        in found["nf.plugins[1]"]
    )
    assert "broken_nic" not in found


class ByRack:
    """A plugin of somebody else, with a strategy of its own."""

    @hookimpl
    def marking_strategies(self) -> list[StrategyInfo]:
        return [StrategyInfo("rack-id", MarkMeaning.TARGET, "A mark per rack.")]


@pytest.mark.parametrize("named", ["", '"marking", '])
def test_the_plugin_that_offers_a_strategy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    installed_with(monkeypatch, "by_rack", f"{__name__}:ByRack")
    monkeypatch.setattr(EntryPoint, "load", load_here(EntryPoint.load))
    plugins = f'"katran_accel", {named}"softnic", "stats"'
    where, message = mistake(tmp_path, f"nf.plugins=[{plugins}]", "marking.strategy=rack-id")
    assert where == "marking.strategy"
    assert message.endswith('add "by_rack" to nf.plugins')
    # And so it is right.
    overrides = (f'nf.plugins=[{plugins}, "by_rack"]', "marking.strategy=rack-id")
    assert load_config(tmp_path / "bad.toml", PluginManager(), overrides).marking.strategy == "rack-id"


def test_a_strategy_that_nobody_offers(tmp_path: Path) -> None:
    _, message = mistake(tmp_path, 'nf.plugins=["katran_accel", "softnic", "stats"]', "marking.strategy=rack-id")
    assert 'no installed plugin offers it; those with strategies are: "marking" (' in message


def test_a_plugin_that_cannot_describe_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_with(monkeypatch, "shy", f"{__name__}:RaisesInSection")
    monkeypatch.setattr(EntryPoint, "load", load_here(EntryPoint.load))
    where, message = mistake(tmp_path, 'nf.plugins=["katran_accel", "marking", "softnic", "stats", "shy"]', "shy.x=1")
    assert (where, message) == ("shy", "plugin 'shy' cannot describe its table: LookupError: no schema today")


class Empty(ConfigTable):
    """A table without keys."""


class LooksAround:
    """A plugin that checks other tables than its own."""

    @hookimpl
    def config_section(self) -> Section:
        return Section(Empty, check_whole=self._check)

    @staticmethod
    def _check(config: Config) -> Iterator[Problem]:
        if config.marking.width < 7:
            sys.exit("too few")
        if config.marking.width < 8:
            raise ArithmeticError("that few bits")
        if config.marking.width < 12:
            yield Problem("marking.width", f"is {config.marking.width}; should be 12 or more")


def test_a_plugin_may_check_all_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_with(monkeypatch, "looks", f"{__name__}:LooksAround")
    monkeypatch.setattr(EntryPoint, "load", load_here(EntryPoint.load))
    plugins = 'nf.plugins=["katran_accel", "marking", "softnic", "stats", "looks"]'
    assert mistake(tmp_path, plugins, "marking.width=11") == ("marking.width", "is 11; should be 12 or more")
    # Also when there are other mistakes.
    found = mistakes(tmp_path, GOOD, plugins, "marking.width=11", "interfaces=[{}]")
    assert {"marking.width", "interfaces[0].name"} <= found.keys()
    where, message = mistake(tmp_path, plugins, "marking.width=7")
    assert where == "looks"
    assert message == "plugin 'looks' cannot check the configuration: ArithmeticError: that few bits"
    _, message = mistake(tmp_path, plugins, "marking.width=6")
    assert message == "plugin 'looks' cannot check the configuration: ExitError: it called sys.exit('too few')"


def load_here(load: Any) -> Any:
    here = {f"{__name__}:{plugin.__name__}": plugin for plugin in (RaisesInSection, LooksAround)}
    return lambda point: here.get(point.value) or load(point)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file or directory"):
        read_toml(tmp_path / "none.toml")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


def test_an_unreadable_file(unprivileged: Any, tmp_path: Path) -> None:
    path = tmp_path / "secret.toml"
    path.write_text(GOOD)
    path.chmod(0)
    assert "secret.toml: cannot be read: Permission denied" in unprivileged(read_toml, path)


BYTES = [
    (b"\xff\xfe[nf]", "is not UTF-8 text"),
    (b"[nf\nplugins = 1", "is not TOML"),
    (b"a = " + b"[" * 5000, "is not TOML"),
    (b"a = " + b"9" * 5000, "is not TOML"),
    (b"[nf]\n[nf]\n", "is not TOML"),
    (b"a = 2021-02-30\n", "is not TOML"),
]


@pytest.mark.parametrize(("content", "text"), BYTES, ids=[repr(case[0][:12]) for case in BYTES])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, text: str) -> None:
    found = mistakes(tmp_path, content)
    assert list(found) == [""]
    assert text in found[""]


OVERRIDES = [
    ("marking.strategy", "marking.strategy", "should be KEY.PATH=VALUE"),
    ("=x", "=x", "should be KEY.PATH=VALUE"),
    ("marking..width=3", "marking..width=3", "should be KEY.PATH=VALUE"),
    ("interfaces.name=eth2", "interfaces.name", "'interfaces' is not a table"),
    ("offload.min_packets.x=1", "offload.min_packets.x", "'min_packets' is not a table"),
]


@pytest.mark.parametrize(("override", "path", "text"), OVERRIDES)
def test_bad_overrides(tmp_path: Path, override: str, path: str, text: str) -> None:
    where, message = mistake(tmp_path, override)
    assert where == path
    assert text in message


def test_overrides_are_toml_or_plain_text() -> None:
    overrides = ["marking.strategy=flow-id", "offload.min_packets=1", 'nf.socket="/tmp/a=b"', "new.table.x=[1, 2]"]
    raw = read_toml(DEMO, overrides)
    assert raw["marking"]["strategy"] == "flow-id"
    assert raw["offload"]["min_packets"] == 1
    assert raw["nf"]["socket"] == "/tmp/a=b"
    assert raw["new"] == {"table": {"x": [1, 2]}}


@given(st.integers(0, 10**6), st.sampled_from(["us", "ms", "s", "m", "h"]))
def test_durations_that_people_write(number: int, unit: str) -> None:
    seconds = parse_duration(f"{number}{unit}")
    assert parse_duration(f"{number} {unit}") == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.floats(0, 1e12))
def test_any_duration_is_read_as_it_was_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [
        ("90s", 90, "90s"),
        ("120s", 120, "2m"),
        ("1.5ms", 0.0015, "1500us"),
        ("0s", 0, "0s"),
        ("0.5us", 5e-7, "0.0000005s"),
    ],
)
def test_durations(text: str, seconds: float, written: str) -> None:
    assert math.isclose(parse_duration(text), seconds)
    assert format_duration(parse_duration(text)) == written


@pytest.mark.parametrize(
    "value", ["", "30", "s", "-3s", "1e3s", "3d", " 3s", "3s\n", "٣s", "9" * 400 + "s", 30, 3.0, None]
)
def test_bad_durations(value: object) -> None:
    with pytest.raises(ValueError, match="should be a duration with its unit"):
        parse_duration(value)


def resolved_again(config_text: str, path: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path.write_text(config_text, encoding="utf-8")
    first = load_config(path, PluginManager(), overrides).resolved()
    path.write_text(write_toml(first), encoding="utf-8")
    assert tomllib.loads(path.read_text(encoding="utf-8")) == first
    return first, load_config(path, PluginManager()).resolved()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("katran_accel.forwarding_cpus=[0, 1]", "katran_accel.pin_dir=/sys/fs/bpf/x"),
        ("offload.grace=1.25ms", "marking.quarantine=0.3us", "marking.strategy=flow-id"),
        ('softnic.pins={"eth0.100" = "/run/a b/ü\\\\x\\u007f", eth1 = "#\\""}',),
        ('katran_accel.vips=[{address="198.18.0.0/24", port=0, protocol="udp", reals=[{address="2001:DB8::0001"}]}]',),
    ],
)
def test_resolved_is_a_configuration_of_the_same_meaning(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    first, second = resolved_again(GOOD, tmp_path / "resolved.toml", *overrides)
    assert first == second


def test_resolved_has_the_defaults(tmp_path: Path) -> None:
    text = '[nf]\nplugins = ["marking", "katran_accel"]\n[[katran_accel.vips]]\naddress = "198.18.10.1"\nport = 80\n'
    first, _ = resolved_again(
        f'{text}protocol = "tcp"\nreals = [{{ address = "198.18.20.11" }}]\n', tmp_path / "small.toml"
    )
    assert first["offload"]["idle_timeout"] == "30s"
    assert first["marking"]["strategy"] == "dest-id"
    assert first["katran_accel"]["forwarding_cpus"] == "all"
    assert first["katran_accel"]["vips"][0]["reals"][0]["weight"] == 1


# fmt: off
KEYS = st.sampled_from([
    "nf", "plugins", "socket", "interfaces", "name", "chain", "offload", "xdp_mode", "marking",
    "strategy", "width", "carrier", "quarantine", "idle_timeout", "max_rules", "katran_accel", "vips",
    "address", "port", "protocol", "reals", "weight", "flags", "forwarding_cpus", "gateway_mac",
    "softnic", "pins", "odd", "stats", "exclude", "max_share", "counter_lag",
])
# fmt: on
LEAVES = st.one_of(
    st.integers(-3, 70_000),
    st.booleans(),
    st.floats(allow_nan=True),
    st.dates(),
    st.sampled_from(
        ["katran_accel", "marking", "softnic", "stats", "none", "tcp", "198.18.10.1", "2001:db8::1", "30s"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
TOMLISH = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
VIP = st.fixed_dictionaries(
    {}, optional={"address": TOMLISH, "port": TOMLISH, "protocol": TOMLISH, "flags": TOMLISH, "reals": TOMLISH}
)
DOCUMENTS = st.fixed_dictionaries(
    {"nf": st.just({"plugins": ["katran_accel", "marking", "softnic", "stats"]}) | TOMLISH},
    optional={
        "interfaces": st.lists(TOMLISH, max_size=2) | TOMLISH,
        "marking": TOMLISH,
        "offload": TOMLISH,
        "softnic": TOMLISH,
        "katran_accel": st.fixed_dictionaries({"vips": st.lists(VIP, max_size=3)}) | TOMLISH,
        "odd": TOMLISH,
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(document=DOCUMENTS)
@example(document={"nf": {"plugins": ["katran_accel"]}, "interfaces": [{"offload": 1}]})
def test_no_document_raises_anything_else(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfcore.config.loader.read_toml", lambda path, overrides: document)
    try:
        config = load_config(tmp_path / "x.toml", PluginManager())
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message
    else:
        assert tomllib.loads(write_toml(config.resolved())) == config.resolved()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80))
def test_no_file_raises_anything_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path, PluginManager())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(override=st.text(max_size=30))
def test_no_override_raises_anything_else(override: str) -> None:
    try:
        read_toml(DEMO, [override])
    except ConfigError as error:
        assert error.problems


def test_a_width_with_too_few_marks_is_a_mistake(tmp_path: Path) -> None:
    reals = ", ".join(f'{{ address = "198.18.20.{number}" }}' for number in range(1, 5))
    path = tmp_path / "nf.toml"
    path.write_text(
        f"""
        [nf]
        plugins = ["katran_accel", "marking"]
        [marking]
        width = 2
        [offload]
        max_rules = 3
        [[katran_accel.vips]]
        address = "198.18.10.1"
        port = 80
        protocol = "tcp"
        reals = [{reals}]
        """
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, PluginManager())
    (problem,) = caught.value.problems
    assert problem.path == "marking.width"
    assert "needs 4 marks" in problem.message and "gives 3" in problem.message

    with pytest.raises(ConfigError) as caught:
        load_config(path, PluginManager(), ["marking.strategy=flow-id", "offload.max_rules=4"])
    assert [problem.path for problem in caught.value.problems] == ["offload.max_rules"]

    for fitting in (["marking.width=3"], ["marking.strategy=flow-id"]):
        load_config(path, PluginManager(), fitting)


RX_QUEUE = """
nf.plugins = ["katran_accel", "marking"]
marking.carrier = "rx-queue"
[[interfaces]]
name = "eth1"
chain = ["katran_accel"]
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
reals = [{ address = "198.18.20.1" }]
"""


def test_a_receive_queue_is_narrower_than_other_marks(tmp_path: Path) -> None:
    path = tmp_path / "nf.toml"
    path.write_text(RX_QUEUE)
    with pytest.raises(ConfigError, match=r"marking\.width: is 16; should be at most 12 with the carrier rx-queue"):
        load_config(path, PluginManager())
    assert load_config(path, PluginManager(), ["marking.width=12"]).marking.carrier == "rx-queue"


def test_skb_mark_needs_native_mode(tmp_path: Path) -> None:
    path = tmp_path / "nf.toml"
    path.write_text(
        """
        nf.plugins = ["katran_accel", "marking"]
        marking.carrier = "skb-mark"
        [[interfaces]]
        name = "eth1"
        chain = ["katran_accel"]
        xdp_mode = "auto"
        [[katran_accel.vips]]
        address = "198.18.10.1"
        port = 80
        protocol = "tcp"
        reals = [{ address = "198.18.20.1" }]
        """
    )
    with pytest.raises(ConfigError, match=r"interfaces\[0\]\.xdp_mode: is 'auto'; should be 'native'"):
        load_config(path, PluginManager())
