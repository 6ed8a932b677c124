# SPDX-License-Identifier: Apache-2.0
"""`nfcore flow`, as a person calls it, against the real methods behind a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from nfcore.cli import tables
from nfcore.errors import NfcoreError
from nfcore.plugins.flow_actions.commands import app
from tests.unit.flow_actions.serving import Daemon, serve


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serve(tmp_path / "nfcore.sock") as daemon:
        yield daemon


@pytest.fixture
def flow(daemon: Daemon) -> Callable[..., str]:
    """Run a command: what it printed. Raises the error that it ends with."""

    def run(*words: str, answer: str = "") -> str:
        done = CliRunner().invoke(app, [*words, "--socket", str(daemon.path)], input=answer)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    return run


Flow = Callable[..., str]


def refusal(flow: Flow, *words: str) -> str:
    with pytest.raises(NfcoreError) as caught:
        flow(*words)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_add_list_show_and_del(flow: Flow) -> None:
    assert flow("add", "flood", "--src", "198.18.7.0/24", "--action", "drop", "--ttl", "10m") == "added flood\n"
    police = ("--packets-per-second", "100", "--burst", "10", "--priority", "7", "--no-offload")
    match = (
        "--dst",
        "2001:db8::5",
        "--proto",
        "udp",
        "--dport",
        "53",
        "--require",
        "proto=17",
        "--require",
        "dport=53",
    )
    flow("add", "dns", *match, "--action", "police", *police)
    listed = flow("list")
    assert "198.18.7.0/24:* > *:*/*" in listed
    assert "*:* > [2001:db8::5]:53/udp" in listed
    assert "police packets_per_second=100 burst=10" in listed
    assert "2 listed of 2 entries" in listed
    assert "1 listed of 2 entries" in flow("list", "198.18.7.9")
    assert "flood" not in flow("list", "--action", "police")
    shown = flow("show", "dns")
    assert "*:* > [2001:db8::5]:53/udp, priority 7" in shown
    assert "marked packets must match proto=udp, dport=53" in shown
    assert "0 packets, 0 bytes, 0 packets by NICs" in shown
    assert "no packet yet" in shown
    assert "not in hardware: it has no backend" in shown
    assert "ends in" in flow("show", "flood")
    assert flow("del", "flood", "dns") == "deleted 2\n"


def test_a_long_list_is_plain(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    flow("add", "計数", "--src", "198.18.7.0/24", "--action", "count")
    flow("add", "b", "--src", "198.18.8.1", "--action", "drop", "--ttl", "10m")
    drawn = flow("list")
    monkeypatch.setattr(tables, "MOST_DRAWN", 1)
    titles, *rows, last = flow("list").splitlines()
    assert last in drawn and len(rows) == 2
    assert titles.split("  ")[0] == "name" and titles.index("match") == len("計数") * 2 + 2
    places = [cell_len(row[: row.index("198.18.")]) for row in rows]
    assert places == [titles.index("match")] * 2
    for row in rows:
        assert all(cell.strip() in drawn for cell in row.split("  "))


def test_json(flow: Flow) -> None:
    assert json.loads(flow("add", "a", "--src", "198.18.1.1", "--action", "pass", "--json")) == {
        "added": 1,
        "deleted": 0,
    }
    listed = json.loads(flow("list", "--json"))
    assert (listed["total"], listed["entries"][0]["name"], listed["entries"][0]["action"]) == (1, "a", "pass")
    assert json.loads(flow("show", "a", "--json"))["src"] == "198.18.1.1"
    assert json.loads(flow("del", "a", "--json")) == {"added": 0, "deleted": 1}
    assert json.loads(flow("clear", "--yes", "--json")) == {"deleted": 0}


def test_mistakes_name_the_option(flow: Flow) -> None:
    assert refusal(flow, "add", "x", "--src", "198.18.1.1/8", "--action", "drop") == (
        "flow add: --src: entry 'x': is '198.18.1.1/8', which has host bits; should be '198.0.0.0/8'"
    )
    text = refusal(flow, "add", "x", "--src", "198.18.1.1", "--action", "police", "--burst", "1")
    assert text.startswith("flow add: --packets-per-second: ")
    assert "--family: " in refusal(flow, "add", "x", "--action", "drop")
    assert "--require: is 'proto'; should be KEY=VALUE" in refusal(
        flow, "add", "x", "--action", "drop", "--require", "proto"
    )
    assert refusal(flow, "del", "nothing") == "flow del: nothing: entry 'nothing': there is no such entry"
    assert "there is no such entry" in refusal(flow, "show", "nothing")


def test_clear_asks(flow: Flow) -> None:
    flow("add", "a", "--src", "198.18.1.1", "--action", "drop")
    flow("clear", answer="n\n")
    assert "1 listed" in flow("list")
    flow("clear", answer="y\n")
    assert "0 listed" in flow("list")


def lines(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


A, B = ({"name": name, "src": f"198.18.1.{number}", "action": "drop"} for number, name in enumerate("ab"))


def test_load_takes_all_or_nothing(flow: Flow, tmp_path: Path) -> None:
    file = tmp_path / "flows.jsonl"
    file.write_text(lines(A) + "\n" + lines({**B, "ttl": "1h"}))
    assert flow("load", str(file)) == "added 2, deleted 0\n"
    file.write_text("\n" + lines({**A, "name": "c", "src": "198.18.3.3"}, {**B, "name": "d", "dport": 5}))
    assert refusal(flow, "load", str(file)) == (
        f"{file}: line 3, dport: entry 'd': is 5; a port needs proto, which should be 'tcp' or 'udp'"
    )
    assert "2 listed" in flow("list")
    file.write_text(lines(A, {**B, "name": "e", "src": "198.18.5.5"}))
    assert "line 1, name: entry 'a': is the name of entry 'a' of an application" in refusal(flow, "load", str(file))
    assert flow("load", str(file), "--replace") == "added 2, deleted 2\n"


def test_load_from_standard_input(flow: Flow) -> None:
    assert flow("load", "-", answer=lines(A, B)) == "added 2, deleted 0\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "line 1: is not JSON"),
        (b"\n\n[1]\n", "line 3: is [1]; should be an object such as"),
        (b"\xff\xfe\n", "line 1: is not JSON"),
        (b"[" * 100_000, "line 1: is not JSON"),
        (b'{"name": "a", "src": "198.18.1.1", "action": "drop", "dport": NaN}', "line 1: is not JSON: it has NaN"),
        (b'{"name": "a"}', "line 1, action: entry 'a': is missing"),
    ],
)
def test_files_that_cannot_be_loaded(flow: Flow, tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "flows.jsonl"
    file.write_bytes(content)
    assert words in refusal(flow, "load", str(file))
    assert "0 listed" in flow("list")


def test_a_file_that_is_not_there(flow: Flow, tmp_path: Path) -> None:
    with pytest.raises(NfcoreError, match="cannot be read: No such file"):
        flow("load", str(tmp_path / "none"))


def test_names_with_control_characters_are_refused(flow: Flow) -> None:
    assert "printable characters" in refusal(flow, "add", "a\x1b[31m", "--src", "198.18.1.1", "--action", "drop")
