# SPDX-License-Identifier: Apache-2.0
"""The daemon's socket, asked by the real client and by clients that are none."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfcore.api.json_rows import JsonRows
from nfcore.control import server as module
from nfcore.control.client import Client, EndedError, RefusedError, daemon_answers, request
from nfcore.control.server import LINE_LIMIT, MOST_CLIENTS, ControlServer
from nfcore.errors import HostError


def fails(parameters: Mapping[str, Any]) -> Any:
    raise LookupError("no flow of that name")


METHODS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "echo": lambda parameters: parameters,
    "fails": fails,
    "odd": lambda parameters: np.uint32(7),
    "big": lambda parameters: "x" * (2 * LINE_LIMIT),
}


async def later(parameters: Mapping[str, Any]) -> Any:
    await asyncio.sleep(float(parameters.get("seconds", 0)))
    return "later"


METHODS["later"] = later


def rows(parameters: Mapping[str, Any]) -> Any:
    def made() -> Iterator[Any]:
        for number in range(parameters["number"]):
            yield {"n": number, "more": JsonRows(lambda: ([n] if n == 0 else [] for n in range(2))), "plain": [1]}
        if parameters.get("odd"):
            yield np.uint32(7)

    return {"rows": JsonRows(made), "of": {"none": JsonRows(list), "words": 'ü"'}}


METHODS["rows"] = rows
NOBODY = 65534


@contextmanager
def daemon(path: Path, group: str = "", order_group: str = "") -> Iterator[ControlServer]:
    """Serve METHODS from an event loop of its own: `echo` reads, `later` gives orders."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, loop).result(timeout=10)

    server = ControlServer(path, METHODS, {"echo"}, group, {"later"}, order_group)
    try:
        wait(server.open())
        yield server
    finally:
        wait(server.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(settle())
        loop.close()


@contextmanager
def open_to_nogroup() -> Iterator[tuple[Path, ControlServer]]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own are for nobody else
        path = Path(folder) / "nfcore.sock"
        with daemon(path, grp.getgrgid(NOBODY).gr_name) as server:
            yield path, server


async def settle() -> None:
    """Let connections that a test left open end."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "nfcore.sock"


@pytest.fixture
def served(path: Path) -> Iterator[Path]:
    with daemon(path):
        yield path


def raw(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines as they are on one connection; the answer to each."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        with client.makefile("rb") as answers:
            found = []
            for line in lines:
                client.sendall(line + b"\n")
                found.append(json.loads(answers.readline()))
            return found


def test_questions_and_answers(served: Path) -> None:
    assert request(served, "echo", a=1, b=["ü", None]) == {"a": 1, "b": ["ü", None]}
    assert request(served, "echo") == {}


def test_a_long_answer_arrives_whole(served: Path) -> None:
    assert request(served, "big") == "x" * (2 * LINE_LIMIT)


def test_an_unknown_method_names_those_that_there_are(served: Path) -> None:
    with pytest.raises(HostError, match="no method 'stat' here; there are: big, echo, fails, later, odd, rows"):
        request(served, "stat")


def test_a_method_that_raises(served: Path) -> None:
    with pytest.raises(HostError, match="fails: no flow of that name"):
        request(served, "fails")
    assert request(served, "echo") == {}


def test_an_answer_that_is_no_json(served: Path) -> None:
    with pytest.raises(HostError, match="cannot be written as JSON"):
        request(served, "odd")


BAD = [
    b"{",
    b'{"method": "echo", "params": {"a": NaN}}',
    b"stats",
    b"[]",
    b"1",
    b"null",
    b"{}",
    b'{"method": ["echo"]}',
    b'{"method": {}}',
    b"\xff",
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", BAD, ids=[repr(line[:12]) for line in BAD])
def test_what_is_no_question_is_said_to_be_none(served: Path, line: bytes) -> None:
    bad, good = raw(served, line, b'{"method": "echo", "params": {"a": 1}}')
    assert "no method" in bad["error"] or "not a request; should be like" in bad["error"]
    assert good == {"result": {"a": 1}}


def test_a_question_with_a_key_that_means_nothing(served: Path) -> None:
    bad, good = raw(served, b'{"method": "echo", "param": {"a": 1}}', b'{"params": {"a": 1}, "method": "echo"}')
    assert bad == {"error": "'param' is no key of a request; there are: method, params"}
    assert good == {"result": {"a": 1}}


def test_a_question_that_never_ends(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(served))
        with pytest.raises((BrokenPipeError, ConnectionResetError, AssertionError)):
            for _ in range(64):
                client.sendall(b"x" * LINE_LIMIT)
            raise AssertionError("still connected")
    assert request(served, "echo") == {}


def test_a_question_that_is_a_little_too_long(served: Path) -> None:
    assert raw(served, b"x" * (LINE_LIMIT + 1)) == [{"error": "a request has at most 131,072 bytes"}]
    assert request(served, "echo") == {}


def test_a_client_that_goes_away(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served))
        client.sendall(b'{"method": "big"}\n')
    assert request(served, "echo") == {}


def test_clients_at_the_same_time(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(served))
        assert request(served, "echo", a=1) == {"a": 1}


def test_the_socket_is_its_users_alone(served: Path) -> None:
    assert stat.S_IMODE(served.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a socket that belongs to somebody else")
def test_another_user_is_told_to_use_sudo(served: Path, unprivileged: Callable[..., str]) -> None:
    said = unprivileged(request, served, "echo")
    assert f"the daemon's socket {served} is not for this user: use sudo" in said
    assert "become a member of the group that [nf] socket_group or order_group names" in said


def test_a_method_that_waits_holds_nobody_up(served: Path) -> None:
    with Client(served) as waiting:
        thread = threading.Thread(target=lambda: answers.append(waiting.request("later", seconds=1.0)))
        answers: list[Any] = []
        thread.start()
        assert request(served, "echo", a=1) == {"a": 1}
        assert answers == []
        thread.join()
        assert answers == ["later"]


def test_a_client_that_never_reads_holds_nobody_up(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(served))
        deaf.sendall(b'{"method": "big"}\n' * 20)
        assert request(served, "echo", a=1) == {"a": 1}


def test_one_client_asks_again_and_again(served: Path) -> None:
    with Client(served) as client:
        assert [client.request("echo", n=number) for number in range(3)] == [{"n": 0}, {"n": 1}, {"n": 2}]
        with pytest.raises(HostError, match="no flow of that name"):
            client.request("fails")
        assert client.request("later") == "later"


def test_clients_are_not_without_end(served: Path) -> None:
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(Client(served)) for _ in range(MOST_CLIENTS)]
        for client in clients:
            assert client.request("echo") == {}
        with pytest.raises(HostError, match=f"too many clients: {MOST_CLIENTS} are connected"):
            request(served, "echo")
        assert clients[-1].request("echo") == {}
        clients[0].close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(HostError):
                assert request(served, "echo") == {}
                break
        else:
            raise AssertionError("the place of a client that is gone was not given again")


CROWD = """
import socket, sys
clients = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for client in clients:
    client.connect(sys.argv[1])
    client.sendall(b'{"method": "echo"}\\n')
    assert client.recv(100)
print("connected", flush=True)
sys.stdin.read()
"""
"""Clients of another user, who have asked once and stay."""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_group_keeps_root_not_out_and_its_idle_ones_give_way(
    unprivileged: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE", 1000.0)
    with open_to_nogroup() as (path, server):
        command = [sys.executable, "-c", CROWD, str(path), str(MOST_CLIENTS)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, text=True, user=NOBODY, group=NOBODY, extra_groups=[]) as crowd:  # type: ignore[call-overload]
            assert crowd.stdout.readline() == "connected\n"
            assert request(path, "later") == "later"
            assert f"too many clients: {MOST_CLIENTS} are connected" in unprivileged(request, path, "echo")
            assert (server.dropped["full"], server.dropped["idle"]) == (1, 0)
            monkeypatch.setattr(module, "IDLE", 0.0)
            assert unprivileged(request, path, "echo") == "{}"
            assert (server.dropped["full"], server.dropped["idle"]) == (1, 1)
            crowd.communicate("")


def test_who_asks_nothing_has_to_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.3)
    with daemon(path) as server, Client(path) as asks, socket.socket(socket.AF_UNIX) as silent:
        assert asks.request("echo") == {}
        silent.settimeout(10)
        silent.connect(str(path))
        silent.sendall(b'{"method":')
        assert silent.recv(1) == b""
        assert server.dropped["silent"] == 1
        assert asks.request("echo") == {}


def test_who_does_not_read_a_long_answer_has_to_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_PATIENCE", 0.3)
    with daemon(path) as server, socket.socket(socket.AF_UNIX) as deaf:
        deaf.settimeout(10)
        deaf.connect(str(path))
        deaf.sendall(b'{"method": "rows", "params": {"number": 100000000}}\n')
        while not server.dropped["slow"]:
            assert request(path, "echo") == {}
            time.sleep(0.05)
        samples = {
            sample.labels.get("reason", ""): sample.value for family in server.collect() for sample in family.samples
        }
        assert samples["slow"] == 1
        # The rest was never made: no more has come than the socket holds.
        come = 0
        with suppress(ConnectionResetError):
            while more := len(deaf.recv(1 << 20)):
                come += more
        assert come < 10_000_000


def test_rows_are_made_while_others_are_answered(served: Path) -> None:
    with Client(served, 30) as long, Client(served) as other:
        thread = threading.Thread(target=lambda: answers.append(long.request("rows", number=50_000)))
        answers: list[Any] = []
        thread.start()
        between = 0
        while not answers:
            assert other.request("echo") == {}
            between += 1
        thread.join()
    assert between > 3
    assert len(answers[0]["rows"]) == 50_000
    assert answers[0]["rows"][7] == {"n": 7, "more": [[0], []], "plain": [1]}
    assert answers[0]["of"] == {"none": [], "words": 'ü"'}


def test_a_row_that_cannot_be_written(served: Path) -> None:
    with pytest.raises(HostError, match="cannot be written as JSON"):
        request(served, "rows", number=0, odd=True)
    with pytest.raises(EndedError):
        request(served, "rows", number=20_000, odd=True)
    assert request(served, "echo") == {}


def test_a_daemon_that_ends_meanwhile(path: Path) -> None:
    with daemon(path):
        client = Client(path)
        assert client.request("echo") == {}
    with client, pytest.raises(EndedError, match="it has ended"):
        client.request("echo")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_group_may_ask_and_not_order(unprivileged: Callable[..., str]) -> None:
    with open_to_nogroup() as (path, _):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, NOBODY)
        assert unprivileged(request, path, "echo") == "{}"
        assert "odd changes the daemon, which only root may do: use sudo" in unprivileged(request, path, "odd")


def ask_as(path: Path, method: str, *groups: int) -> str:
    """Ask as user nobody who is in these groups: the result, or the error."""
    script = (
        "import sys; from pathlib import Path; from nfcore.control.client import request\n"
        "try: print(request(Path(sys.argv[1]), sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", script, str(path), method]
    done = subprocess.run(
        command, user=NOBODY, group=groups[0], extra_groups=groups[1:], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_group_for_orders() -> None:
    orders, readers, other = (grp.getgrnam(name) for name in ("games", "users", "nogroup"))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "orders.sock"
        with daemon(path, order_group=orders.gr_name):
            assert path.stat().st_gid == orders.gr_gid
            for groups in ((orders.gr_gid,), (other.gr_gid, orders.gr_gid)):
                assert ask_as(path, "later", *groups) == "later"
                assert ask_as(path, "echo", *groups) == "{}"
                assert "NotAllowedError odd changes the daemon, which only root" in ask_as(path, "odd", *groups)
            assert "NotAllowedError the daemon's socket" in ask_as(path, "echo", other.gr_gid)
        with daemon(path, readers.gr_name, orders.gr_name):
            assert path.stat().st_gid == readers.gr_gid
            both = ask_as(path, "later", other.gr_gid, readers.gr_gid, orders.gr_gid)
            assert both == "later"
            assert ask_as(path, "echo", readers.gr_gid) == "{}"
            refused = "NotAllowedError later gives orders for flows, which only root and members of group games may do"
            assert ask_as(path, "later", readers.gr_gid) == refused
            assert "NotAllowedError the daemon's socket" in ask_as(path, "later", orders.gr_gid)
        with daemon(path, readers.gr_name):
            assert "or let a group by [nf] order_group" in ask_as(path, "later", readers.gr_gid)


def test_errors_tell_programs_details(path: Path) -> None:
    def wrong(parameters: Mapping[str, Any]) -> Any:
        error = HostError("not so")
        error.details = {"problems": [{"entry": "a"}]}
        raise error

    with daemon(path):
        METHODS["detailed"] = wrong
        try:
            with pytest.raises(RefusedError, match="not so") as caught:
                request(path, "detailed")
        finally:
            del METHODS["detailed"]
    assert caught.value.details == {"problems": [{"entry": "a"}]}


def test_a_group_for_orders_that_does_not_exist(path: Path) -> None:
    with pytest.raises(HostError, match=r"nf\.order_group: there is no group 'nobodies-1'"):
        asyncio.run(ControlServer(path, {}, (), "", (), "nobodies-1").open())


def test_a_group_that_does_not_exist(path: Path) -> None:
    with pytest.raises(HostError, match=r"nf\.socket_group: there is no group 'nobodies-1'"):
        asyncio.run(ControlServer(path, {}, (), "nobodies-1").open())
    assert not path.exists()


def test_closing_removes_the_socket(path: Path) -> None:
    with daemon(path):
        assert daemon_answers(path)
    assert not path.exists()
    assert not daemon_answers(path)


def test_a_second_daemon_is_refused(served: Path) -> None:
    with pytest.raises(HostError, match=f"a daemon is running already: its socket {served} answers"):
        asyncio.run(ControlServer(served, {}).open())
    assert request(served, "echo", a=1) == {"a": 1}


def test_a_dead_daemons_socket_is_taken_over(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with daemon(path):
        assert request(path, "echo", a=1) == {"a": 1}


def test_a_users_file_is_not_taken_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(HostError, match=rf"nf\.socket: cannot listen on {path}"):
        asyncio.run(ControlServer(path, {}).open())
    assert path.read_text() == "precious"


@pytest.mark.parametrize("place", ["file/x.sock", "x" * 120])
def test_a_place_that_cannot_be_used(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"nf\.socket: cannot listen on"):
        asyncio.run(ControlServer(tmp_path / place, {}).open())


def test_without_a_daemon(path: Path) -> None:
    with pytest.raises(HostError, match=f"no daemon answers at {path}; start one: nfcore run CONFIG"):
        request(path, "stats")


def test_after_a_killed_daemon(tmp_path: Path) -> None:
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(HostError, match="no daemon answers at"):
        request(path, "stats")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "gave no answer"),
        (b"hello\n", "gave no answer"),
        (b"3\n", "is no nfcore daemon"),
        (b"{}\n", "is no nfcore"),
    ],
)
def test_somebody_elses_socket(tmp_path: Path, answer: bytes, words: str) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def serve() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HostError, match=words):
            request(path, "stats")
        thread.join()
