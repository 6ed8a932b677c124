# SPDX-License-Identifier: Apache-2.0
"""Whatever a TOML has where: a problem under its full key, or a configuration, and never another exception."""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer
from typer.testing import CliRunner

from nfcore.api.config import (
    ConfigTable,
    InterfaceName,
    InterfaceTable,
    MarkingTable,
    NfTable,
    OffloadTable,
    Section,
    parse_network,
)
from nfcore.api.hookspecs import hookimpl
from nfcore.cli.main import app
from nfcore.config import reader
from nfcore.config.loader import load_config
from nfcore.config.reader import write_toml
from nfcore.errors import ConfigError
from nfcore.hooks import discovery
from nfcore.hooks.manager import PluginManager
from nfcore.scaffold import Kind, make_skeleton, write_skeleton
from tests.paths import ROOT

INPUTS = int(os.environ.get("NFCORE_FUZZ_INPUTS", "20000"))
PER_EXAMPLE = 50
"""Places of the document into which one odd value is put, each an input."""


class Queue(ConfigTable):
    """A table of a table."""

    first: int = Field(ge=0)
    weight: float = 1.0
    kind: Literal["queue"] = "queue"


class Ring(ConfigTable):
    """Another one, with a key that is named otherwise in the TOML."""

    slots: int = Field(alias="number-of-slots", default=1)
    kind: Literal["ring"] = "ring"


def _odd(value: object) -> object:
    if value == "odd":
        raise ValueError
    return value


class DriverTable(ConfigTable):
    """All shapes that a third party may come upon."""

    queues: dict[InterfaceName, Queue] = Field(default={})
    either: int | Queue | list[Queue] = 1
    tagged: Annotated[Queue | Ring, Field(discriminator="kind")] | None = None
    grid: list[list[Queue]] = Field(default=[])
    nested: dict[str, dict[str, list[Ring]]] = Field(default={})
    mute: Annotated[str, BeforeValidator(_odd)] = ""
    networks: dict[str, Annotated[Any, BeforeValidator(parse_network)]] = Field(default={}, exclude=True)
    opened: date | None = None


class DriverPlugin:
    """A third party's plugin."""

    @hookimpl
    def config_section(self) -> Section:
        """Own `[driver]`."""
        return Section(DriverTable)


CORE = """
[nf]
plugins = PLUGINS
socket = "/run/nfcore/nfcore.sock"
socket_group = ""
order_group = ""
hook_patience = "5s"
events_kept = 65536
[[interfaces]]
name = "eth1"
chain = ["FUNCTION"]
offload = ["BACKEND", "none"]
xdp_mode = "native"
[[interfaces]]
name = "eth0.100"
chain = ["FUNCTION"]
offload = ["BACKEND"]
[marking]
strategy = "dest-id"
carrier = "rx-queue"
width = 12
quarantine = "1s"
pool_chunk = 512
[offload]
min_packets = 8
min_rate = 0.0
exclude = ["198.18.0.0/16", "2001:db8::/32"]
max_share = 1.0
inserts_per_second = 5000.0
insert_burst = 5000
max_rules = 60000
waiting = 16384
remembered = 65536
idle_timeout = "30s"
counter_lag = "1s"
grace = "100ms"
events = "ringbuf"
"""
BALANCER = """
[katran_accel]
gateway_mac = { eth1 = "02:00:5e:10:00:01" }
destination_mac = ["own", "00:00:5e:00:01:0a"]
forwarding_cpus = [0, 1]
lru_size = 262144
maglev = 2
vlan = true
pin_dir = "/sys/fs/bpf/lb"
encapsulation = "gue"
gue_port = 9886
gue_checksum = "katran"
source_v4 = "198.18.2.2"
source_v6 = "2001:db8:2::2"
icmp = false
too_big = "answer"
mtu = 1400
fragments = "hash-addresses"
tcp_server_ids = true
server_id_map = "hash"
new_flow_limit = 1000
server_ids = [{ id = 7, real = "198.18.20.11" }, { id = 16777217, real = "2001:db8::20" }]
server_ids_file = "SERVER_IDS"
source_routes = [
  { prefix = "198.18.7.0/24", real = "198.18.20.11" },
  { prefix = "2001:db8::/48", real = "2001:db8::20" },
]
source_routes_file = "SOURCE_ROUTES"
capture = true
introspection = true
[katran_accel.decap]
ipip = true
gue = true
strict = true
addresses = [{ address = "198.18.2.3", egress = true }, { address = "2001:db8:2::3" }]
[[katran_accel.vips]]
address = "198.18.10.1"
port = 80
protocol = "tcp"
flags = ["hash_no_src_port", "local", "src_routing"]
reals = [{ address = "198.18.20.11", weight = 10, local = true }, { address = "2001:db8::20", down = true }]
[[katran_accel.vips]]
address = "2001:db8:1::/64"
port = 0
protocol = "udp"
reals = [{ address = "2001:db8::20" }]
[katran_accel.healthcheck]
interface = "eth1"
out_interface = "eth1"
base_mark = 1000000
encapsulation = "gue"
gue_port = 6080
gateway_mac = "auto"
source_v4 = "198.18.2.2"
source_v6 = "auto"
[softnic.pins]
eth1 = "/run/nfcore/bpf/softnic-eth1"
"eth0.100" = "/run/nfcore/bpf/other"
[stats]
listen = "127.0.0.1:9464"
"""
FILES = {"SERVER_IDS": "# id, real\n8,198.18.20.12\n", "SOURCE_ROUTES": "198.18.8.0/24,2001:db8::20\n"}
"""Files that the balancer's table names, and what they have."""
FLOWS = """
[flow_actions]
entries = 1000
targets = 100
pin_dir = ""
marked_packets = "trust"
missing_interface = "drop"
[[flow_actions.flows]]
name = "one"
src = "198.18.7.0/24"
dst = "198.18.8.1"
sport = 7
dport = 9
proto = "udp"
family = 4
action = "redirect"
interface = "eth2"
priority = 3
offload = true
require = { src = "198.18.0.0/15", dst = "198.18.8.0/24", proto = "udp", dport = 9, family = 4 }
[[flow_actions.flows]]
name = "two"
family = 6
action = "police"
packets_per_second = 10
burst = 20
[[flow_actions.flows]]
name = "three"
dst = "198.18.9.0/24"
action = "set_dscp"
dscp = 3
[[flow_actions.flows]]
name = "four"
dst = "198.18.10.0/24"
action = "cpu"
cpu = 0
[[flow_actions.flows]]
name = "five"
dst = "198.18.11.0/24"
action = "police"
bytes_per_second = 100000
burst = 200000
[tc_offload]
prio = 6000
skip_sw = "auto"
last_used = false
[tc_offload.devices.eth1]
filter_on = "eth1-peer"
direction = "egress"
[tc_offload.devices."eth0.100"]
direction = "ingress"
"""
FOREIGN = """
[driver]
either = { first = 1 }
tagged = { kind = "ring", number-of-slots = 3 }
grid = [[{ first = 1, weight = 2.0, kind = "queue" }], []]
mute = "x"
opened = 2026-01-01
networks."a b" = "198.18.0.0/15"
[driver.queues.eth1]
first = 0
[[driver.nested.a.b]]
number-of-slots = 3
kind = "ring"
[tenant_marks]
bits = 4
[[tenant_marks.owners]]
name = "shop"
block = 1
vips = ["198.18.10.1:80/tcp", "2001:db8:1::/64"]
[nic_ntuple.locations]
"eth0.100" = "512-1023"
[acme_backend]
rules = 4096
verbose = true
[acme_nf]
ports = [80, 443]
flows = 10
[acme_strategy]
"""


def core(function: str, backend: str, *others: str) -> str:
    """The tables of the core, with one function and one backend."""
    plugins = [function, backend, "marking", *others]
    return CORE.replace("PLUGINS", str(plugins)).replace("FUNCTION", function).replace("BACKEND", backend)


DOCUMENTS = (
    core("katran_accel", "softnic", "stats") + BALANCER,
    core("flow_actions", "tc_offload") + FLOWS,
    core("acme_nf", "nic_ntuple", "driver", "tenant_marks", "acme_backend", "acme_strategy") + FOREIGN,
)
"""Valid ones that have, all together, every table with every key."""


def places(value: Any, steps: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the document has a value, and in each table a key that nobody knows."""
    if steps:
        yield steps
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for step, inner in items:
        yield from places(inner, (*steps, step))
    if isinstance(value, dict):
        yield from ((*steps, odd) for odd in ("odd", "a b", "eth9", ""))


TEXTS = st.sampled_from(
    [
        "198.18.20.11/33",
        "::",
        "fe80::1%eth0",
        "30s",
        "-1",
        "odd",
        "auto",
        "eth1",
        "é" * 15,
        "x" * 100_000,
        "\0",
        "\x1b[",
    ]
)
ZONE = timezone(timedelta(hours=-3))
SCALARS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1]),
    st.booleans(),
    st.floats(),
    TEXTS,
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from([date(2026, 1, 1), time(1, 2), datetime(2026, 1, 1, 1, 2), datetime(2026, 1, 1, tzinfo=ZONE)]),
)
KEYS = st.sampled_from(["", "a.b", "\n", "eth1", "first", "kind", "[key]", "0", "address", "src", "name", "port"])
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def deep(levels: int, *, of_lists: bool) -> Any:
    """A value of so many levels."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if of_lists else {"a": value}
    return value


@dataclass
class Case:
    """A valid document, the plugins that it names, and what to put odd values into."""

    text: str
    plugins: PluginManager

    def __post_init__(self) -> None:
        self.raw = tomllib.loads(self.text)
        self.places = list(places(self.raw))

    def read(self, path: Path, document: dict[str, Any]) -> None:
        """Let a file have this content, and look at what becomes of it."""
        path.touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "tomllib", SimpleNamespace(loads=lambda text: document))
            try:
                config = load_config(path, self.plugins)
            except ConfigError as error:
                assert error.problems
                for problem in error.problems:
                    judge(problem.path, problem.message, document)
                return
        assert tomllib.loads(write_toml(config.resolved())) == config.resolved()


def import_foreign(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """Give the plugins of the skeletons and of the examples, as their authors have them."""
    modules = {}
    for kind in Kind:
        skeleton = make_skeleton(f"acme_{kind}", kind)
        write_skeleton(skeleton, folder / kind)
        patch.syspath_prepend(folder / kind / "src")
        modules[skeleton.name] = f"{skeleton.module}.plugin"
    for example, name, module in (
        ("nfcore-nic-ntuple", "nic_ntuple", "nfcore_nic_ntuple"),
        ("nfcore-strategy-tenant", "tenant_marks", "nfcore_strategy_tenant.plugin"),
    ):
        patch.syspath_prepend(ROOT / f"examples/{example}/src")
        modules[name] = module
    for name, module in modules.items():
        (plugin,) = [each for key, each in vars(importlib.import_module(module)).items() if key.endswith("Plugin")]
        yield name, plugin()
    yield "driver", DriverPlugin()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Case]]:
    """All documents."""
    with pytest.MonkeyPatch.context() as patch:
        foreign = dict(import_foreign(tmp_path_factory.mktemp("plugins"), patch))
        installed = discovery.installed()
        points = {name: EntryPoint(name, "x:y", discovery.ENTRY_POINT_GROUP) for name in foreign}
        patch.setattr(discovery, "installed", lambda: installed | points)
        folder = tmp_path_factory.mktemp("files")
        for name, content in FILES.items():
            (folder / name).write_text(content)
        found = []
        for document in DOCUMENTS:
            text = re.sub("|".join(FILES), lambda name: str(folder / name[0]), document)
            plugins = PluginManager()
            for name in tomllib.loads(text)["nf"]["plugins"]:
                plugins.register(foreign[name], name) if name in foreign else plugins.load(name)
            found.append(Case(text, plugins))
        yield found


def mutated(document: Any, steps: Sequence[str | int], junk: Any) -> Any:
    """The document with another value at one place; the rest is shared."""
    if not steps:
        return junk
    copied = copy.copy(document)
    inner = None if len(steps) == 1 else document[steps[0]]
    copied[steps[0]] = mutated(inner, steps[1:], junk)
    return copied


STEP = re.compile(r'\[(\d+)\]|(?:^|\.)(?:([A-Za-z0-9_-]+)|("(?:[^"\\]|\\.)*"))')


def judge(path: str, message: str, document: Any) -> None:
    """Check that a problem's path leads through the document, and its message says something of use."""
    assert message and len(message) < 1_500, (path, message)
    assert not re.search(r"plugin '\w+' cannot|Error:|Traceback|<class", message), (path, message)
    assert STEP.sub("", path) == "", path
    found = list(STEP.finditer(path))
    for number, step in enumerate(found):
        key = int(step[1]) if step[1] else step[2] or tomllib.loads(f"key = {step[3]}")["key"]
        if not (key in document if isinstance(document, dict) else key in range(len(document))):
            assert number == len(found) - 1 and isinstance(document, dict), (path, message)
            return
        document = document[key]


def models(kind: Any) -> Iterator[type[BaseModel]]:
    """A model and those within it."""
    if isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel):
        yield kind
        for each in kind.model_fields.values():
            yield from models(each.annotation)
    for inner in get_args(kind):
        yield from models(inner)


def test_the_documents_are_valid_and_have_every_key(cases: list[Case], tmp_path: Path) -> None:
    keys: set[object] = set()
    wanted = {key for table in (NfTable, InterfaceTable, MarkingTable, OffloadTable) for key in table.model_fields}
    for case in cases:
        path = tmp_path / "full.toml"
        path.write_text(case.text)
        config = load_config(path, case.plugins)
        keys |= {step for steps in case.places for step in steps}
        tables = [type(table) for table in config.sections.values()]
        wanted |= {
            field.alias or name
            for table in tables
            for model in models(table)
            for name, field in model.model_fields.items()
        }
    # A compiled object goes with neither a chain nor most other keys.
    assert wanted - {"program"} <= keys


EXTREMES = {
    "lists": deep(70, of_lists=True),
    "tables": deep(70, of_lists=False),
    "many lists": deep(400, of_lists=True),
    "many tables": deep(400, of_lists=False),
    "more digits than Python writes": 16**5000,
    "one of a table": {"eth1": {"a": [-(16**5000)]}},
}


@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES)
def test_no_size_is_too_much(cases: list[Case], tmp_path: Path, extreme: Any) -> None:
    for case in cases:
        for steps in case.places:
            case.read(tmp_path / "odd.toml", mutated(case.raw, steps, extreme))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=INPUTS // PER_EXAMPLE,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
)
@given(junk=JUNK, first=st.integers(0, 1000))
def test_no_value_anywhere_raises_anything_else(cases: list[Case], tmp_path: Path, junk: Any, first: int) -> None:
    for number in range(PER_EXAMPLE):
        case = cases[number % len(cases)]
        # A step that shares no factor with the number of places visits them all.
        steps = case.places[(first + 7 * number) % len(case.places)]
        case.read(tmp_path / "odd.toml", mutated(case.raw, steps, junk))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_no_text_raises_anything_else(cases: list[Case], tmp_path: Path, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(cases))
    text, path = case.text.encode(), tmp_path / "odd.toml"
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        more = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"[", b"]", b'"', b"=", b"\n", b".", b"{", b"[[x]]\n"])
        )
        text = text[:at] + more + text[at + data.draw(st.integers(0, 5)) :]
    path.write_bytes(text)
    done = CliRunner().invoke(app, ["check", str(path), data.draw(st.sampled_from(["--resolved", "--json"]))])
    assert done.exit_code == 0 or isinstance(done.exception, ConfigError)


class Careless(ConfigTable):
    """A model whose validators raise what pydantic does not expect."""

    key: Annotated[str, BeforeValidator(lambda value: {"fine": "fine"}[value])] = "fine"
    whole: Annotated[str, BeforeValidator(lambda value: sys.exit(3) if value == "exit" else value)] = ""
    shown: Annotated[str, PlainSerializer(lambda value: {"": ""}[value])] = ""


class CarelessPlugin:
    """A third party's plugin with several faults."""

    @hookimpl
    def config_section(self) -> Section:
        """Own `[careless]`."""
        return Section(Careless, check=lambda raw, path: ["no Problem"] if raw.get("shown") == "check" else ())  # type: ignore[list-item, return-value]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ('key = "x"', "plugin 'careless' cannot read its table: KeyError: 'x'"),
        ('whole = "exit"', "plugin 'careless' cannot read its table: ExitError: it called sys.exit(3)"),
        ('shown = "check"', "plugin 'careless' cannot check its table: TypeError: it gave 'no Problem'; should be"),
        ('shown = "x"', "plugin 'careless' cannot write its table: "),
    ],
)
def test_a_careless_plugin_is_named(tmp_path: Path, key: str, said: str) -> None:
    plugins, path = PluginManager(), tmp_path / "careless.toml"
    plugins.register(CarelessPlugin(), "careless")
    path.write_text(f'[nf]\nplugins = ["stats"]\n[careless]\n{key}\n')
    with pytest.raises(ConfigError) as refused:
        load_config(path, plugins).resolved()
    (problem,) = refused.value.problems
    assert problem.path == "careless" and problem.message.startswith(said)
