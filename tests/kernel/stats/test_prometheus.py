# SPDX-License-Identifier: Apache-2.0
"""What a running daemon gives Prometheus: promtool's opinion, the guide's table, the dashboard, the alerts."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import nfcore as package
from nfcore.api.metrics import MetricFamily
from nfcore.control.client import request
from nfcore.kernel import Program, XdpMode, attach_xdp, compile_program, interface_index
from nfcore.plugins.katran_accel.metrics import BalancerMetrics
from nfcore.plugins.stats.registry import Registry
from nfcore.plugins.tc_offload import TcOffloadPlugin
from tests.isolation import on_one_cpu
from tests.kernel.carriers.veth_link import PASS
from tests.kernel.flow_actions.chained_site import open_chained_site
from tests.kernel.katran_accel.every_feature import open_full_world
from tests.kernel.site import Site, eventually, ip, nfcore
from tests.kernel.traffic import Rounds, flow_frames
from tests.paths import ROOT
from tests.promtool import promtool

FILES = Path(package.__file__).parent / "plugins" / "stats" / "prometheus"
SUFFIX = re.compile(r"_(bucket|sum|count)$")
OWN_LABELS = {"instance", "le", "alertname", "severity"}
"""Of Prometheus itself, and of the alerts."""


HEALTHCHECK = """
[katran_accel.healthcheck]
source_v4 = "198.18.2.2"
source_v6 = "2001:db8:2::2"
"""


@dataclass(frozen=True)
class Seen:
    """A daemon's figures by its socket and by HTTP."""

    metrics: dict[str, dict[str, Any]]
    text: str


def get(path: str, method: str = "GET", port: int = 9464) -> tuple[int, str]:
    """Status and body of what the daemon answers over HTTP."""
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    with client, client.makefile("rb") as answer:
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: nfcore\r\n\r\n".encode())
        head, _, body = answer.read().decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    with (
        on_one_cpu(),
        open_chained_site(tmp_path_factory.mktemp("site")) as site,
        site.running(site.chain_config(strategy="flow-id", balancer=HEALTHCHECK)),
    ):
        with Rounds(flow_frames(5)) as rounds:
            rounds.offload(site)
            rounds.several(10)
        # So that the endpoint has something to tell of itself.
        assert get("/healthz") == (200, '{"status": "ok", "troubles": [], "warnings": []}\n')
        return Seen({each["name"]: each for each in site.metrics().families}, get("/metrics")[1])


def test_promtool_has_nothing_to_say(seen: Seen) -> None:
    assert promtool("check", "metrics", given=seen.text.encode()) == ""


def test_prometheus_reads_what_the_socket_tells(seen: Seen) -> None:
    read = {}
    for family in text_string_to_metric_families(seen.text):
        read[family.name + ("_total" if family.type == "counter" else "")] = family
    assert read.keys() == seen.metrics.keys()
    for name, metric in seen.metrics.items():
        family = read[name]
        assert (family.type, family.documentation) == (metric["type"], metric["help"])
        told = {frozenset(sample["labels"].items()) for sample in metric["samples"]}
        got = {frozenset((k, v) for k, v in sample.labels.items() if k != "le") for sample in family.samples}
        assert told <= got, name
    (capacity,) = {sample["value"] for sample in seen.metrics["nfcore_lru_capacity_flows"]["samples"]}
    assert {sample.value for sample in read["nfcore_lru_capacity_flows"].samples} == {capacity}


# The guide


def guide() -> dict[str, dict[str, tuple[str, list[str], str, str]]]:
    """Section → metric → type, labels, unit, meaning, as docs/metrics.md has them."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    sections: dict[str, dict[str, tuple[str, list[str], str, str]]] = {}
    for section in text.split("\n### ")[1:]:
        rows = re.findall(r"^\| `(nfcore_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| (.*) \|$", section, re.MULTILINE)
        sections[section.split("\n", 1)[0]] = {
            name: (kind, re.findall(r"`(\w+)`", labels), unit.strip(), meaning)
            for name, kind, labels, unit, meaning in rows
        }
    return sections


def check_section(section: dict[str, tuple[str, list[str], str, str]], families: dict[str, MetricFamily]) -> None:
    """The guide's section is about these families."""
    assert sorted(section) == sorted(families)
    for name, (kind, labels, unit, meaning) in section.items():
        family = families[name]
        assert (kind, tuple(labels), unit) == (family.kind, family.labels, family.unit), name
        assert meaning.startswith(family.help), name


def test_the_guide_tells_of_every_metric_as_it_is(seen: Seen, tmp_path: Path) -> None:
    sections = guide()
    flower, features = sections.pop("tc_offload"), sections.pop("katran_accel: features that a TOML may ask for")
    told = {name: row for section in sections.values() for name, row in section.items()}
    assert sorted(told) == sorted(seen.metrics)
    for name, (kind, labels, unit, meaning) in told.items():
        metric = seen.metrics[name]
        assert (kind, labels, unit) == (metric["type"], metric["labels"], metric["unit"]), name
        assert meaning.startswith(metric["help"]), name
    # There is no flower here, but what the plugin has to tell is known.
    check_section(flower, {family.name: family for family in TcOffloadPlugin().collect_stats()})
    registry = Registry()
    with open_full_world(tmp_path) as world:
        registry.add(BalancerMetrics(world.balancer).families())
    check_section(features, {family.name: family for family in registry if family.name not in told})


# The dashboard and the alerts


def check_expression(expression: str, seen: Seen) -> None:
    """Every metric in it exists, with the labels that it is asked for by."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\bnfcore_\w+", plain))
    known = {name: seen.metrics[SUFFIX.sub("", name)] for name in names if SUFFIX.sub("", name) in seen.metrics}
    assert names == known.keys(), expression
    for name, labels in re.findall(r"\b(nfcore_\w+)\{([^}]*)\}", plain):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))
        assert asked <= {*known[name]["labels"], *OWN_LABELS}, expression
    grouped = {
        label
        for labels in re.findall(r"\b(?:by|without|on|ignoring) ?\(([^)]*)\)", plain)
        for label in re.findall(r"\w+", labels)
    }
    assert grouped <= {label for metric in known.values() for label in metric["labels"]} | OWN_LABELS, expression


def expressions(node: Any) -> Iterator[tuple[str, str]]:
    """All expressions of a dashboard, each with its legend."""
    if isinstance(node, dict):
        if "expr" in node:
            yield node["expr"], node.get("legendFormat", "")
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_the_dashboard_asks_for_what_there_is(seen: Seen, tmp_path: Path) -> None:
    dashboard = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
    found = list(expressions(dashboard))
    assert len(found) > 40
    rules = tmp_path / "dashboard.yml"
    lines = ["groups: [{name: dashboard, rules: ["]
    for number, (expression, legend) in enumerate(found):
        check_expression(expression, seen)
        used = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert used <= set(re.findall(r"\w+", expression)) | labels_of(expression, seen) | OWN_LABELS, (
            expression,
            legend,
        )
        plain = expression.replace("$__rate_interval", "5m").replace("$__interval", "5m").replace("$instance", ".*")
        lines.append(f"{{record: 'd:e:{number}', expr: {json.dumps(plain)}}},")
    rules.write_text("\n".join([*lines, "]}]"]))
    assert f"{len(found)} rules found" in promtool("check", "rules", rules)
    panels = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(panels)) == len(panels)


def labels_of(expression: str, seen: Seen) -> set[str]:
    names = (SUFFIX.sub("", name) for name in re.findall(r"\bnfcore_\w+", expression))
    return {label for name in names for label in seen.metrics[name]["labels"]}


def alerts() -> dict[str, str]:
    """Alert → its expression."""
    text = (FILES / "alerts.yml").read_text(encoding="utf-8")
    return dict(re.findall(r"- alert: (\w+)\n(?: +#.*\n)* +expr: (.*)\n", text))


def test_the_alerts_ask_for_what_there_is(seen: Seen) -> None:
    text = (FILES / "alerts.yml").read_text(encoding="utf-8")
    assert len(alerts()) == text.count("- alert:") > 10
    for name, expression in alerts().items():
        check_expression(expression, seen)
        (block,) = re.findall(rf"- alert: {name}\n(.*?)(?=\n +- alert:|\Z)", text, re.DOTALL)
        assert set(re.findall(r"\$labels\.(\w+)", block)) <= labels_of(expression, seen), name


def test_each_alert_fires_when_it_should_and_none_when_all_is_well() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", FILES / "alerts.yml")
    tests = ROOT / "tests/unit/stats/alerts_test.yml"
    assert set(re.findall(r'alertname="(\w+)"', tests.read_text(encoding="utf-8"))) == alerts().keys()
    assert "SUCCESS" in promtool("test", "rules", tests)


# The daemon


@pytest.mark.slow
def test_a_taken_port_keeps_no_daemon_from_running(site: Site) -> None:
    other = socket.create_server(("127.0.0.1", 9464))
    with site.running(site.config()):
        assert "stats.listen: cannot listen on 127.0.0.1:9464" in site.daemons.logged()
        assert site.metric("nfcore_stats_listening") == 0
        assert site.metric("nfcore_stats_listen_errors_total") >= 1
        other.close()
        assert eventually(lambda: site.metric("nfcore_stats_listening") == 1)
        assert get("/metrics")[0] == 200


def test_where_it_listens_changes_while_it_runs(site: Site) -> None:
    config = site.config()
    text = config.read_text()
    with site.running(config):
        assert get("/metrics")[0] == 200
        config.write_text(text + '[stats]\nlisten = "127.0.0.1:9999"\n')
        assert "stats" in json.dumps(site_reload(site))
        assert get("/metrics", port=9999)[0] == 200
        with pytest.raises(ConnectionRefusedError):
            get("/metrics")
        config.write_text(text + "[stats]\nlisten = false\n")
        site_reload(site)
        with pytest.raises(ConnectionRefusedError):
            get("/metrics", port=9999)
        assert site.metric("nfcore_stats_listening") == 0
        # What was counted at one place is not forgotten at another, nor at none.
        assert site.metric("nfcore_stats_responses_total", code="200") == 2


def site_reload(site: Site) -> Any:
    return request(site.socket, "reload", timeout=30)


def attached(site: Site) -> float:
    return site.metric("nfcore_program_attached", interface="eth1")


def troubles(site: Site) -> list[str]:
    """What the daemon says is wrong."""
    words: list[str] = request(site.socket, "health")["troubles"]
    return words


def doctor(config: Path) -> tuple[int, str, str]:
    """Exit status, and what `nfcore doctor` says of the daemon and of the interface's program."""
    run = nfcore("doctor", str(config), "--json")
    told = {
        each["what"]: f"{each['status']}: {each['found']} {each['advice']}"
        for each in json.loads(run.stdout)["findings"]
    }
    return run.returncode, told["daemon"], told["eth1: XDP"]


@pytest.mark.slow
def test_a_program_that_somebody_took_off_or_replaced_is_told_everywhere_and_left_so(site: Site) -> None:
    config = site.config()
    ifindex = interface_index("eth1")
    with site.running(config) as daemon, compile_program(PASS, "pass", defines={}, maps={}) as other:
        ours = site.program()
        assert ours is not None
        assert (attached(site), troubles(site)) == (1, [])
        assert doctor(config) == (0, "ok: running ", f"ok: program {ours} attached in native mode ")
        ip("link", "set", "eth1", "xdp", "off")
        assert eventually(lambda: attached(site) == 0)
        off = "eth1: the program is no longer attached"
        status, body = get("/healthz")
        assert (status, json.loads(body)["troubles"], troubles(site)) == (503, [off], [off])
        seen_by_top = request(site.socket, "top")
        assert seen_by_top["troubles"] == [off]
        assert seen_by_top["values"]["nfcore_program_attached"] == [[{"interface": "eth1"}, 0]]
        status, of_daemon, of_program = doctor(config)
        assert (status, of_daemon) == (1, f"fault: running: {off} ")
        assert of_program.startswith(f"fault: the daemon's program {ours} is no longer") and "restart" in of_program
        assert site.program() is None
        attach_xdp(ifindex, other, mode=XdpMode.NATIVE)
        replaced = f"{off}: another, {other.id}, is in its place"
        assert eventually(lambda: troubles(site) == [replaced])
        assert f"program {other.id} is in its place" in doctor(config)[2]
        with Program.from_id(ours) as again:
            attach_xdp(ifindex, again, mode=XdpMode.NATIVE, replace=other.id)
        assert eventually(lambda: attached(site) == 1)
        assert doctor(config)[0] == 0
        attach_xdp(ifindex, other, mode=XdpMode.NATIVE, replace=ours)
        assert eventually(lambda: attached(site) == 0)
        events = request(site.socket, "events", kinds=["link"], interfaces=["eth1"])["events"]
        said = [each["message"].split(";")[0] for each in events if "the program" in each["message"]]
        assert [f"eth1: {words}" for words in said] == [off, replaced, "eth1: the program is attached again", replaced]
        daemon.terminate()
        daemon.wait(30)
        log = site.daemons.logged()
        assert (
            log.count(
                f"ERROR nfcore.daemon.program_monitor: {off}; no packet reaches it; to have it back restart nfcore"
            )
            == 1
        )
        assert "ip link set dev eth1 xdp off, and restart nfcore" in log
        # Whose it is now, it stays.
        assert site.program() == other.id
