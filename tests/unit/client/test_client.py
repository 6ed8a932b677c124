# SPDX-License-Identifier: Apache-2.0
"""nfcore.client, both of them, against the real methods behind a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfcore.api.config import parse_duration
from nfcore.client import AsyncFlowClient, Flow, FlowClient, FlowError, NoDaemonError, NotAllowedError, calls
from nfcore.errors import HostError
from tests.unit.flow_actions.serving import Daemon, serve

CALLS = Flow("calls", dst="198.18.10.5", proto="udp", dport=5060, action="set_dscp", dscp=46)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serve(tmp_path / "nfcore.sock") as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[FlowClient]:
    with FlowClient(daemon.path) as client:
        yield client


def drop(name: str, src: str, **keys: Any) -> Flow:
    return Flow(name, src=src, **keys)


def test_ten_lines(client: FlowClient) -> None:
    assert client.add(drop("flood", "198.18.7.0/24", ttl="10m"), CALLS) == calls.Changed(2, 0)
    shown = client.show("calls")
    assert shown.order() == CALLS
    assert (shown.owner, shown.packets, shown.seen_seconds, shown.in_hardware) == ("application", 0, None, False)
    assert 0 < (client.show("flood").expires_seconds or 0) <= 600
    assert 0 < parse_duration(client.show("flood").order().ttl) <= 600
    assert [flow.name for flow in client.list(action="drop")] == ["flood"]
    assert [flow.name for flow in client.list("198.18.10.5")] == ["calls"]
    assert client.delete("flood").deleted == 1
    assert client.clear() == 1
    assert list(client.list()) == []


def test_all_that_a_flow_can_say(client: FlowClient) -> None:
    flows = [
        Flow("a", src="2001:db8::/32", dst="2001:db8:1::1", proto=58, action="count", priority=3, offload=False),
        Flow("b", family=6, proto="tcp", sport=1, dport=2, action="police", bytes_per_second=16, burst=20),
        Flow("c", src="198.18.1.1", action="pass", require={"src": "198.18.0.0/15"}),
    ]
    client.add(*flows)
    assert [flow.order() for flow in client.list()] == flows


def test_a_batch_is_made_at_the_end_of_its_block(daemon: Daemon, client: FlowClient) -> None:
    client.add(CALLS)
    with client.batch() as batch:
        batch.add(drop("a", "198.18.1.1"), drop("b", "198.18.1.2"))
        batch.delete("calls")
        batch.add(CALLS)
        assert daemon.data_plane.changes[1:] == []
    assert batch.changed == calls.Changed(3, 1)


def test_a_batch_whose_block_raises_is_never_made(client: FlowClient) -> None:
    with pytest.raises(KeyError), client.batch() as batch:
        batch.add(drop("a", "198.18.1.1"))
        raise KeyError
    assert list(client.list()) == []


def test_a_change_that_needs_many_requests(tmp_path: Path) -> None:
    with serve(tmp_path / "s", entries=20_000) as daemon, FlowClient(daemon.path) as client:
        flows = [drop(f"{'n' * 40}{number}", f"198.18.{number >> 8}.{number & 255}") for number in range(10_000)]
        assert client.change(flows).added == 10_000
        assert len(daemon.data_plane.changes) == 1
        assert sum(1 for _ in client.list()) == 10_000
        again = [drop("a", "198.19.1.1"), *flows[1:], drop("a", "198.19.1.2")]
        with pytest.raises(FlowError) as caught:
            client.change(again, [flow.name for flow in flows])
        assert (caught.value.entry, caught.value.key, caught.value.index) == ("a", "name", 10_000)
        with pytest.raises(FlowError) as caught:
            client.change([*flows, drop("bad", "198.18.1")])
        assert (caught.value.entry, caught.value.key, caught.value.index) == ("bad", "src", 10_000)
        assert daemon.methods._batches == {}
        assert client.clear() == 10_000


def test_errors_name_the_entry_and_the_key(client: FlowClient) -> None:
    with pytest.raises(FlowError, match="has host bits") as caught:
        client.add(CALLS, drop("wrong", "198.18.1.1/8"))
    assert (caught.value.entry, caught.value.key, caught.value.index) == ("wrong", "src", 1)
    with pytest.raises(FlowError, match="there is no such entry") as caught:
        client.delete("nothing")
    assert caught.value.entry == "nothing"
    with pytest.raises(FlowError, match="there is no such entry"):
        client.show("nothing")
    assert list(client.list()) == []


def test_without_flow_actions(client: FlowClient) -> None:
    with pytest.raises(FlowError, match="no method 'stats'"):
        client.stats()
    with pytest.raises(FlowError, match="no method 'flows'"):
        client.flows(limit=3)


def test_without_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match="no daemon answers at"):
        FlowClient(tmp_path / "none.sock")

    async def connect() -> None:
        async with AsyncFlowClient(tmp_path / "none.sock"):
            pass

    with pytest.raises(NoDaemonError, match="no daemon answers at"):
        asyncio.run(connect())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_who_may_not(daemon: Daemon, unprivileged: Callable[..., str]) -> None:
    def attempt() -> str:
        try:
            FlowClient(daemon.path)
        except NotAllowedError as error:
            return f"not allowed: {error}"
        return "connected"

    assert "not allowed: the daemon's socket" in unprivileged(attempt)


def test_a_daemon_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def serve_once() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"result": {"protocol": 2}}\n')

        thread = threading.Thread(target=serve_once)
        thread.start()
        with pytest.raises(HostError, match="speaks version 2 of the protocol for flows, this client 1"):
            FlowClient(path)
        thread.join()


def test_after_a_timeout_the_connection_is_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "slow.sock"
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(path))
        slow.listen()
        release = threading.Event()

        def serve_once() -> None:
            connection, _ = slow.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"result": {"protocol": 1}}\n')
                release.wait(10)

        thread = threading.Thread(target=serve_once)
        thread.start()
        with FlowClient(path, timeout=0.2) as client:
            with pytest.raises(HostError, match="gave no answer"):
                client.clear()
            with pytest.raises(HostError):
                client.clear()
        release.set()
        thread.join()


def test_the_asynchronous_client(daemon: Daemon) -> None:
    async def use() -> list[str]:
        async with AsyncFlowClient(daemon.path) as client:
            await asyncio.gather(*(client.add(drop(f"e{number}", f"198.18.1.{number}")) for number in range(20)))
            async with client.batch() as batch:
                batch.add(CALLS)
                batch.delete("e1", "e2")
            assert batch.changed == calls.Changed(1, 2)
            with pytest.raises(FlowError) as caught:
                await client.add(drop("x", "nowhere"))
            assert (caught.value.entry, caught.value.key) == ("x", "src")
            with pytest.raises(KeyError):
                async with client.batch() as batch:
                    batch.add(drop("x", "198.18.1.200"))
                    raise KeyError
            assert (await client.show("calls")).dscp == 46
            await client.delete("calls")
            names = [flow.name async for flow in client.list()]
            assert await client.clear() == len(names)
            with pytest.raises(FlowError):
                await client.stats()
            with pytest.raises(FlowError):
                await client.flows(limit=1)
            return names

    assert sorted(asyncio.run(use())) == sorted(f"e{number}" for number in range(20) if number not in (1, 2))


def test_a_cancelled_call_does_not_leave_its_answer_to_the_next_one(daemon: Daemon) -> None:
    async def use() -> None:
        client = AsyncFlowClient(daemon.path)
        await client.connect()
        task = asyncio.create_task(client.add(CALLS))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if client._streams is None:
            with pytest.raises(HostError, match="is not connected"):
                await client.clear()
            await client.connect()
        await client.clear()
        await client.close()

    asyncio.run(use())


def test_a_client_that_dies_in_a_batch_changes_nothing(daemon: Daemon) -> None:
    script = (
        "import os, sys; from nfcore.client import FlowClient, Flow, calls\n"
        "client = FlowClient(sys.argv[1])\n"
        "token = client._send(calls.Request('flow.begin', {}))['batch']\n"
        "client._send(calls.Request('flow.put', {'batch': token, 'add': [Flow('a', src='198.18.1.1').to_json()]}))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(daemon.path)], check=False)
    assert done.returncode == -9
    with FlowClient(daemon.path) as client:
        assert list(client.list()) == []
        assert client.add(drop("a", "198.18.1.1")).added == 1


def test_it_is_light() -> None:
    script = (
        "import sys, nfcore.client; print(sorted({'numpy', 'pydantic', 'typer', 'rich', 'bcc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
