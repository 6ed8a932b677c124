# SPDX-License-Identifier: Apache-2.0
"""`/metrics` and `/healthz` over HTTP, on a thread of their own.

      scraper ══ HTTP ══► this thread ── asks for figures ──► event loop: collects
                              ▲      ◄─────── registry ───────────┘
                              └ writes them down, or says 503

Whoever connects has few seconds for everything; the event loop waits for nobody here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

from nfcore.api.health import Health
from nfcore.api.metrics import MetricFamily, counter
from nfcore.errors import describe_error

from ..config import split_listen
from ..registry import Registry
from .exposition import CONTENT_TYPE, Exposition

log = logging.getLogger(__name__)
MOST_CONNECTIONS = 16
DEADLINE = 5.0
"""Seconds that a connection may last, from its first byte to the last of the answer."""
COLLECT_PATIENCE = 3.0
"""Seconds that figures may take to come from the event loop."""
FRESH = 0.25
"""Seconds for which collected figures are given to others who ask."""
RETRY = 5.0
"""Seconds between two tries to listen."""
LONGEST_REQUEST = 16_384
"""Bytes of a request's head."""
Answer = tuple[HTTPStatus, str, bytes]
Ask = Callable[[Callable[[Registry | None], None]], None]
"""Lets the figures be collected on the event loop, and hands them on from there; None when that failed."""


@dataclass
class EndpointCounters:
    """What the endpoint has done, wherever it listens meanwhile. Its thread counts, the event loop reads."""

    responses: Counter[int] = field(default_factory=Counter)
    """By HTTP status."""
    dropped: Counter[str] = field(default_factory=lambda: Counter({"busy": 0, "slow": 0}))
    """Connections that got no answer: there were too many, or they took too long."""
    listen_errors: int = 0

    def metrics(self) -> Iterator[MetricFamily]:
        """Give them as metric families."""
        errors = counter("nfcore_stats_listen_errors_total", "Tries to listen that failed.", "tries")
        errors.add(self.listen_errors)
        answers = counter("nfcore_stats_responses_total", "Answers over HTTP, by status.", "responses", "code")
        for code, number in sorted(self.responses.items()):
            answers.add(number, code=str(code))
        dropped = counter("nfcore_stats_dropped_total", "Connections left without an answer.", "connections", "reason")
        for reason, number in self.dropped.items():
            dropped.add(number, reason=reason)
        yield from (errors, answers, dropped)


class Endpoint:
    """Listens until it is stopped; tries again while the port is taken. `listen` is as in the TOML."""

    def __init__(self, listen: str, ask: Ask, health: Health, counters: EndpointCounters) -> None:
        self.listen = listen
        self.listening = False
        self.counters = counters
        self._ask = ask
        self._health = health
        self._exposition = Exposition()
        self._written: tuple[float, bytes] = (0.0, b"")
        self._collecting: asyncio.Future[bytes | None] | None = None
        self._connections = 0
        self._stop: Callable[[], None] = lambda: None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="stats-http", daemon=True)

    def start(self) -> None:
        """Begin to listen; returns once that was tried for the first time."""
        self._thread.start()
        self._ready.wait(RETRY)

    def stop(self) -> None:
        """Stop listening and let every connection go."""
        if self._thread.is_alive():
            self._stop()
            self._thread.join(DEADLINE)

    async def _run(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        self._stop = end
        waiting = asyncio.ensure_future(stop.wait())
        said = ""
        while not stop.is_set():
            try:
                host, port = split_listen(self.listen)
                server = await asyncio.start_server(self._serve, host, port, limit=LONGEST_REQUEST)
            except OSError as error:
                self.counters.listen_errors += 1
                words = error.strerror or str(error)
                if words != said:
                    advice = "figures are to be had from `nfcore stats` alone until it is free; trying again"
                    log.warning("stats.listen: cannot listen on %s: %s; %s", self.listen, words, advice)
                said = words
                self._ready.set()
                await asyncio.wait([waiting], timeout=RETRY)
                continue
            self.listening = True
            self._ready.set()
            log.info("stats.listen: http://%s/metrics", self.listen)
            try:
                await waiting
            finally:
                self.listening = False
                server.close()

    # A connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._counted() as has_room, contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(DEADLINE):
                    if has_room:
                        await self._answer(reader, writer)
                    else:
                        self.counters.dropped["busy"] += 1
            except TimeoutError:
                self.counters.dropped["slow"] += 1
                # What a scraper that hangs has not taken by now goes.
                writer.transport.abort()
            finally:
                writer.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[bool]:
        self._connections += 1
        try:
            yield self._connections <= MOST_CONNECTIONS
        finally:
            self._connections -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            method, answer = "", _plain(HTTPStatus.BAD_REQUEST)
        else:
            method, answer = await self._judge(head)
        status, kind, body = answer
        self.counters.responses[int(status)] += 1
        lines = [
            f"HTTP/1.1 {int(status)} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        if method != "HEAD":
            writer.write(body)
        await writer.drain()

    async def _judge(self, head: bytes) -> tuple[str, Answer]:
        """The method of a request and the answer to it."""
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "", _plain(HTTPStatus.BAD_REQUEST)
        method, path = words[0], words[1].partition("?")[0]
        give = {"/metrics": self._metrics, "/healthz": self._healthz}.get(path)
        if give is None:
            return method, _plain(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz")
        if method not in ("GET", "HEAD"):
            return method, _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        return method, await give()

    async def _healthz(self) -> Answer:
        troubles = list(self._health.troubles())
        status = HTTPStatus.SERVICE_UNAVAILABLE if troubles else HTTPStatus.OK
        answer = {"status": "unhealthy" if troubles else "ok", "troubles": troubles}
        return status, "application/json", json.dumps(answer).encode() + b"\n"

    async def _metrics(self) -> Answer:
        body: bytes | None
        when, body = self._written
        if time.monotonic() - when > FRESH:
            if self._collecting is None or self._collecting.done():
                self._collecting = self._collect()
            try:
                # Shielded: those who come meanwhile wait for the same figures.
                body = await asyncio.wait_for(asyncio.shield(self._collecting), COLLECT_PATIENCE)
            except TimeoutError:
                words = f"the event loop has not given figures for {COLLECT_PATIENCE:g} s: see /healthz"
                return _plain(HTTPStatus.SERVICE_UNAVAILABLE, words)
        if body is None:
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "figures could not be collected: the log says why")
        return HTTPStatus.OK, CONTENT_TYPE, body

    def _collect(self) -> asyncio.Future[bytes | None]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()

        def write(registry: Registry | None) -> None:
            body = None
            try:
                if registry is not None:
                    body = self._exposition.write(registry)
                    self._written = time.monotonic(), body
            except Exception as error:
                log.error("stats: figures cannot be written: %s", describe_error(error))
                log.debug("traceback", exc_info=error)
            finally:
                # Whatever happened: those who wait, and those who come, must not wait for ever.
                answer.set_result(body)

        def hand_over(registry: Registry | None) -> None:
            # This thread may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(write, registry)

        self._ask(hand_over)
        return answer


def _plain(status: HTTPStatus, words: str = "") -> Answer:
    return status, "text/plain; charset=utf-8", f"{words or status.phrase}\n".encode()
