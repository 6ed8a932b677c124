# SPDX-License-Identifier: Apache-2.0
"""The methods `flow.*`, asked over a real socket by clients that know the protocol, and by some that do not."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfcore.control.client import Client, RefusedError, request
from nfcore.errors import ConfigError
from nfcore.plugins.flow_actions import methods as module
from nfcore.plugins.flow_actions.methods import BATCH_IDLE, LINE_LIMIT, MOST_BATCHES, FlowMethods
from tests.paths import ROOT

from .serving import Daemon, no_facts, serve

X = {"name": "x", "src": "198.18.1.1", "action": "drop"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serve(tmp_path / "nfcore.sock") as daemon:
        yield daemon


def ask(daemon: Daemon, method: str, **parameters: Any) -> Any:
    return request(daemon.path, f"flow.{method}", **parameters)


def refusal(daemon: Daemon, method: str, **parameters: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        ask(daemon, method, **parameters)
    assert caught.value.exit_status == 2
    return str(caught.value)


def raw(daemon: Daemon, line: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(daemon.path))
        client.sendall(line + b"\n")
        with client.makefile("rb") as answers:
            return json.loads(answers.readline())


def test_hello_says_the_version_and_what_fits(daemon: Daemon) -> None:
    answer = ask(daemon, "hello")
    assert (answer["protocol"], answer["entries"], answer["capacity"], answer["longest_request"]) == (
        1,
        0,
        1000,
        131072,
    )
    assert answer["actions"]["police"] == ["burst", "bytes_per_second", "packets_per_second"]


def test_a_change_in_one_request(daemon: Daemon) -> None:
    assert ask(daemon, "change", add=[X, {**X, "name": "y", "src": "198.18.1.0/24"}]) == {"added": 2, "deleted": 0}
    assert ask(daemon, "change", add=[{**X, "action": "pass"}], delete=["x"]) == {"added": 1, "deleted": 1}
    shown = ask(daemon, "show", name="y")
    assert (shown["src"], shown["shadowed"], shown["shadowed_by"]) == ("198.18.1.0/24", True, ["x"])
    assert shown["why"] == "it has no backend"
    assert ask(daemon, "clear") == {"deleted": 2}
    assert ask(daemon, "hello")["entries"] == 0


def test_a_change_in_several_requests_is_made_as_a_whole(daemon: Daemon) -> None:
    token = ask(daemon, "begin")["batch"]
    assert ask(daemon, "put", batch=token, add=[X]) == {"add": 1, "delete": 0}
    bad = {**X, "name": "b", "src": "198.18.1.1/8"}
    assert "add[2].src: entry 'b'" in refusal(daemon, "put", batch=token, add=[{**X, "name": "a"}, bad])
    assert ask(daemon, "put", batch=token, add=[{**X, "name": "z", "src": "198.18.1.9"}], delete=[])["add"] == 2
    assert ask(daemon, "hello")["entries"] == 0
    assert ask(daemon, "commit", batch=token) == {"added": 2, "deleted": 0}
    assert "there is no such batch" in refusal(daemon, "commit", batch=token)


def test_a_commit_that_fails_changes_nothing_and_ends_the_batch(daemon: Daemon) -> None:
    ask(daemon, "change", add=[X])
    token = ask(daemon, "begin")["batch"]
    ask(daemon, "put", batch=token, add=[{**X, "name": "new", "src": "198.18.2.2"}])
    ask(daemon, "put", batch=token, add=[{**X, "name": "twice"}], delete=["missing"])
    with pytest.raises(RefusedError) as caught:
        ask(daemon, "commit", batch=token)
    assert [problem["entry"] for problem in caught.value.details["problems"]] == ["missing", "twice"]
    assert "there is no such batch" in refusal(daemon, "put", batch=token)
    assert [row["name"] for row in ask(daemon, "list")["entries"]] == ["x"]


def test_a_data_plane_that_refuses_changes_nothing(daemon: Daemon) -> None:
    daemon.data_plane.refuses = True
    with pytest.raises(RefusedError, match="the map is full"):
        ask(daemon, "change", add=[X])
    daemon.data_plane.refuses = False
    assert ask(daemon, "change", add=[X])["added"] == 1


def test_batches_of_clients_that_are_gone(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [ask(daemon, "begin")["batch"] for _ in range(MOST_BATCHES)]
    assert f"{MOST_BATCHES} batches are open already" in refusal(daemon, "begin")
    assert ask(daemon, "abort", batch=tokens[0]) == {}
    monkeypatch.setattr(module, "MOST_STAGED", 2)
    ask(daemon, "put", batch=tokens[1], delete=["a", "b"])
    assert "is too large: at most 2 entries and names" in refusal(daemon, "put", batch=tokens[2], delete=["c"])
    monkeypatch.setattr(module, "BATCH_PATIENCE", 0.0)
    assert "there is no such batch" in refusal(daemon, "put", batch=tokens[1])


def test_the_batch_that_is_idle_for_longest_gives_way(daemon: Daemon) -> None:
    now = [100.0]
    methods = FlowMethods(daemon.orders, no_facts, clock=lambda: now[0])
    tokens = []
    for _ in range(MOST_BATCHES):
        tokens.append(methods.begin({})["batch"])
        now[0] += 0.01
    methods.put({"batch": tokens[0], "delete": []})
    now[0] += BATCH_IDLE / 2
    with pytest.raises(ConfigError, match="or leave one for 5 s"):
        methods.begin({})
    now[0] += BATCH_IDLE / 2
    tokens.append(methods.begin({})["batch"])
    with pytest.raises(ConfigError, match="no such batch"):
        methods.put({"batch": tokens.pop(1), "delete": []})
    for token in tokens:
        assert methods.put({"batch": token, "delete": []}) == {"add": 0, "delete": 0}


def test_lists_come_in_pages(daemon: Daemon) -> None:
    ask(daemon, "change", add=[{**X, "name": f"e{number}", "src": f"198.18.1.{number}"} for number in range(25)])
    found: list[str] = []
    after: int | None = -1
    while after is not None:
        page = ask(daemon, "list", after=after, limit=10)
        assert (page["matching"], page["total"]) == (25, 25)
        found += [row["name"] for row in page["entries"]]
        after = page["next"]
    assert found == [f"e{number}" for number in range(25)]


def test_filters(daemon: Daemon) -> None:
    orders = [
        {**X, "name": "host"},
        {**X, "name": "net", "src": "198.18.1.0/24", "action": "pass"},
        {**X, "name": "other", "src": None, "dst": "198.18.7.0/24", "family": 4, "priority": 1},
        {**X, "name": "six", "src": "2001:db8::/32"},
    ]
    ask(daemon, "change", add=orders)

    def names(**filters: Any) -> list[str]:
        return [row["name"] for row in ask(daemon, "list", **filters)["entries"]]

    assert names(match="198.18.1.1") == ["host", "net"]
    assert names(match="198.18.1.77") == ["net"]
    assert names(match="198.18.0.0/16") == ["host", "net", "other"]
    assert names(match="::/0") == ["six"]
    assert names(match="o") == ["host", "other"]
    assert names(action="pass") == ["net"]
    assert names(owner="toml") == []
    assert names(owner="application", action="drop", match="ho") == ["host"]
    assert "owner: is 'me'; should be toml or application" in refusal(daemon, "list", owner="me")


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("change", {"add": 7}, "add: is 7; should be a list of entries"),
        ("change", {"add": [X], "delete": "x"}, "delete: is 'x'; should be a list of names"),
        ("change", {"delete": [7]}, "should be a list of names"),
        ("change", {"ad": []}, "ad: is no parameter; there are: add, delete"),
        ("clear", {"all": True}, "all: is no parameter; there are none"),
        ("put", {"batch": []}, "batch: is []; there is no such batch"),
        ("put", {}, "batch: is None; there is no such batch"),
        ("show", {"name": {}}, "name: is {}; there is no such entry"),
        ("show", {}, "there is no such entry"),
        ("list", {"limit": 0}, "limit: is 0; should be a number from 1 to 10,000"),
        ("list", {"limit": True}, "limit: is True; should be a number"),
        ("list", {"after": 1.5}, "after: is 1.5; should be a number"),
        ("list", {"match": 7}, "match: is 7; should be a text"),
        ("list", {"match": "198.18.7.1/24"}, "is '198.18.7.1/24', which has host bits; should be '198.18.7.0/24'"),
        ("list", {"match": "2001:db8::1/32"}, "which has host bits; should be '2001:db8::/32'"),
        ("list", {"action": []}, "action: is []; known: drop"),
    ],
)
def test_wrong_parameters_are_named(daemon: Daemon, method: str, parameters: dict[str, Any], words: str) -> None:
    assert words in refusal(daemon, method, **parameters)
    assert ask(daemon, "change", add=[X])["added"] == 1


HOSTILE = {
    "deep": b'{"method": "flow.change", "params": {"add": ' + b"[" * 60_000 + b"]" * 60_000 + b"}}",
    "deep-object": b'{"method": "flow.change", "params": {"add": ['
    + b'{"require":' * 10_000
    + b"1"
    + b"}" * 10_000
    + b"]}}",
    "nan": b'{"method": "flow.change", "params": {"add": [{"name": "x", "src": "198.18.1.1", "dport": NaN}]}}',
    "infinity": b'{"method": "flow.list", "params": {"limit": -Infinity}}',
    "huge": b'{"method": "flow.change", "params": {"add": [{"priority": ' + b"9" * 100_000 + b"}]}}",
    "list": b'{"method": "flow.change", "params": [1]}',
    "text": b'{"method": "flow.change", "params": "x"}',
    "null": b'{"method": "flow.change", "params": null}',
    "surrogate": rb'{"method": "flow.change", "params": {"add": [{"name": "\ud800", "family": 4, "action": "drop"}]}}',
    "twice": b'{"method": "flow.change", "params": {"add": [{"name": "x", "name": [], "action": "drop"}]}}',
    "not-utf8": b'{"method": "flow.change", "params": {"add": [{"name": "\xff"}]}}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json_is_an_error_and_nothing_more(daemon: Daemon, kind: str) -> None:
    answer = raw(daemon, HOSTILE[kind])
    assert isinstance(answer["error"], str)
    assert "Traceback" not in answer["error"]
    assert ask(daemon, "hello")["entries"] == 0


def test_a_request_that_is_too_long_ends_the_connection(daemon: Daemon) -> None:
    with (
        Client(daemon.path) as client,
        pytest.raises(Exception, match=r"at most 131,072 bytes|has ended|Broken pipe|gave no answer"),
    ):
        client.request("flow.change", add=[{**X, "name": "n" * LINE_LIMIT}])
    assert ask(daemon, "hello")["entries"] == 0


def test_the_guide_has_every_method(daemon: Daemon) -> None:
    guide = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(flow\.\w+)`", guide, re.MULTILINE)) == set(daemon.server._methods)
    assert f"version {module.PROTOCOL}" in guide
