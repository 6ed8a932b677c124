# SPDX-License-Identifier: Apache-2.0
"""The HTTP endpoint before all kinds of scrapers: those that hang, that are too many; an event loop that is stuck."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from nfcore.api.health import LOOP_TIMEOUT, WORKER_TIMEOUT, Health
from nfcore.api.metrics import counter
from nfcore.plugins.stats.prometheus import endpoint as module
from nfcore.plugins.stats.prometheus.endpoint import MOST_CONNECTIONS, Endpoint, EndpointCounters
from nfcore.plugins.stats.registry import Registry

PORT = 9464


class Loop:
    """An event loop's part: collects when it is asked, or not at all."""

    def __init__(self) -> None:
        self.collected = 0
        self.stuck = False
        self.broken = False
        self.waiting: list[Callable[[Registry | None], None]] = []

    def go_on(self) -> None:
        self.stuck = False
        while self.waiting:
            self.ask(self.waiting.pop())

    def ask(self, done: Callable[[Registry | None], None]) -> None:
        if self.stuck:
            self.waiting.append(done)
            return
        if self.broken:
            done(None)
            return
        self.collected += 1
        registry, family = Registry(), counter("nfcore_packets_total", "Packets.", "packets", "vip")
        family.add(self.collected, vip='a"b\\c\nd')
        registry.add([family])
        done(registry)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def listening(loop: Loop, health: Health | None = None, listen: str = f"127.0.0.1:{PORT}") -> Iterator[Endpoint]:
    endpoint = Endpoint(listen, loop.ask, health or alive(), EndpointCounters())
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()
    assert not endpoint.listening


def alive(clock: Clock | None = None) -> Health:
    health = Health(clock or time.monotonic)
    health.turn(0.0)
    return health


def connect(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, PORT), timeout=20)


def ask(request: bytes, host: str = "127.0.0.1") -> tuple[int, dict[str, str], bytes]:
    """Send a request as it is; status, headers, body."""
    with connect(host) as client:
        client.sendall(request)
        return answer(client)


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    with client.makefile("rb") as lines:
        head, _, body = lines.read().partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body


METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.0\r\n\r\n"


def test_figures_are_given_in_prometheus_form() -> None:
    with listening(Loop()) as endpoint:
        status, headers, body = ask(METRICS)
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert int(headers["Content-Length"]) == len(body)
        assert body.decode().splitlines() == [
            "# HELP nfcore_packets_total Packets.",
            "# TYPE nfcore_packets_total counter",
            r'nfcore_packets_total{vip="a\"b\\c\nd"} 1',
        ]
        assert endpoint.counters.responses == {200: 1}


def test_head_has_no_body_and_a_query_changes_nothing() -> None:
    with listening(Loop()):
        status, headers, body = ask(b"HEAD /metrics?name[]=a HTTP/1.1\r\n\r\n")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nCookie: " + b"a" * 40_000 + b"\r\n\r\n", 400),
    ],
    ids=["root", "other path", "other method", "no version", "TLS", "too long"],
)
def test_what_is_no_scrape_is_told_so(request_: bytes, status: int) -> None:
    with listening(Loop()):
        assert ask(request_)[0] == status
        assert ask(METRICS)[0] == 200


def test_several_scrapers_at_once_share_what_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH", 60.0)
    loop = Loop()
    with listening(loop):
        loop.stuck = True
        with connect() as first, connect() as second:
            first.sendall(METRICS)
            second.sendall(METRICS)
            deadline = time.monotonic() + 20
            while not loop.waiting and time.monotonic() < deadline:
                time.sleep(0.01)
            loop.go_on()
            assert answer(first) == answer(second)
        assert loop.collected == 1


def test_who_hangs_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 1.0)
    with listening(Loop()) as endpoint, contextlib.ExitStack() as open_ones:
        silent = [open_ones.enter_context(connect()) for _ in range(MOST_CONNECTIONS - 2)]
        slow = open_ones.enter_context(connect())
        slow.sendall(b"GET /met")
        assert ask(METRICS)[0] == 200
        # They are let go one and all.
        assert [client.recv(1) for client in silent] == [b""] * len(silent)
        assert slow.recv(1) == b""
        assert endpoint.counters.dropped["slow"] == MOST_CONNECTIONS - 1


def test_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Loop):
        def ask(self, done: Callable[[Registry | None], None]) -> None:
            registry, family = Registry(), counter("nfcore_packets_total", "Packets.", "packets", "vip")
            for number in range(100_000):
                family.add(number, vip=f"{number:0100}")
            registry.add([family])
            done(registry)

    monkeypatch.setattr(module, "DEADLINE", 3.0)
    with listening(Large()) as endpoint, connect() as client:
        client.sendall(METRICS)
        deadline = time.monotonic() + 30
        while not endpoint.counters.dropped["slow"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert endpoint.counters.dropped["slow"] == 1
        assert ask(HEALTH)[0] == 200


def test_there_are_not_too_many_at_once() -> None:
    with listening(Loop()) as endpoint, contextlib.ExitStack() as open_ones:
        for _ in range(MOST_CONNECTIONS):
            client = open_ones.enter_context(connect())
            client.sendall(b"GET ")
        deadline = time.monotonic() + 30
        with contextlib.suppress(ConnectionError):
            while not endpoint.counters.dropped["busy"] and time.monotonic() < deadline:
                connect().close()
        assert endpoint.counters.dropped["busy"] >= 1
    with listening(Loop()):
        assert ask(METRICS)[0] == 200


def test_a_stuck_event_loop_is_told_and_scrapes_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLLECT_TIMEOUT", 0.3)
    clock, loop = Clock(), Loop()
    health = alive(clock)
    with listening(loop, health):
        assert ask(HEALTH)[0] == 200
        clock.now += LOOP_TIMEOUT + 1
        loop.stuck = True
        status, _, body = ask(HEALTH)
        assert (status, b"the event loop has not turned for 6 s" in body) == (503, True)
        status, _, body = ask(METRICS)
        assert (status, b"no metrics from the event loop" in body) == (503, True)
        assert len(loop.waiting) == 1
        loop.go_on()
        health.turn(0.0)
        assert ask(HEALTH)[0] == 200
        assert ask(METRICS)[0] == 200


def test_figures_that_cannot_be_collected_are_told() -> None:
    loop = Loop()
    with listening(loop) as endpoint:
        loop.broken = True
        assert ask(METRICS)[0] == 500
        loop.broken = False
        assert ask(METRICS)[0] == 200
        assert endpoint.counters.responses == {500: 1, 200: 1}


def test_a_nic_that_does_not_answer_is_told() -> None:
    health = alive()
    health.workers = {"eth1": lambda: WORKER_TIMEOUT + 1, "eth2": lambda: 0.0}
    with listening(Loop(), health):
        status, _, body = ask(HEALTH)
        assert (status, b"eth1: the NIC has not answered for 31 s" in body, b"eth2" in body) == (503, True, False)


def test_before_the_first_turn_it_is_not_alive() -> None:
    with listening(Loop(), Health()):
        assert ask(HEALTH)[0] == 503


def test_it_listens_on_ipv6() -> None:
    with listening(Loop(), listen=f"[::1]:{PORT}"):
        assert ask(METRICS, "::1")[0] == 200


def test_a_taken_port_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "RETRY", 0.2)
    other = socket.create_server(("127.0.0.1", PORT))
    with listening(Loop()) as endpoint:
        assert not endpoint.listening
        deadline = time.monotonic() + 30
        while endpoint.counters.listen_errors < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert caplog.text.count("stats.listen: cannot listen on 127.0.0.1:9464") == 1
        other.close()
        while not endpoint.listening and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(METRICS)[0] == 200
