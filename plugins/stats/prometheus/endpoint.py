# SPDX-License-Identifier: Apache-2.0
"""`/metrics` and `/healthz` over HTTP, on a thread of its own.

      scraper ══ HTTP ══► this thread ── requests metrics ──► event loop: collects
                              ▲      ◄──── registry ──────────────┘
                              └ writes the text, or answers 503

A connection may last a few seconds in all; the event loop never waits for this thread.
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
"""Seconds that a connection may last, from its first byte to the last of the response."""
COLLECT_TIMEOUT = 3.0
"""Seconds to wait for the metrics from the event loop."""
FRESH = 0.25
"""Seconds for which collected metrics are given to other requests, too."""
RETRY = 5.0
"""Seconds between two tries to listen."""
LONGEST_REQUEST = 16_384
"""Bytes of the head of a request."""
Response = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""
Request = Callable[[Callable[[Registry | None], None]], None]
"""Requests the metrics and passes them to a callback on the event loop's thread; None when that failed."""


@dataclass
class EndpointCounters:
    """Counters of the endpoint, kept when it listens elsewhere. Its thread counts, the event loop reads."""

    responses: Counter[int] = field(default_factory=Counter)
    """By HTTP status."""
    dropped: Counter[str] = field(default_factory=lambda: Counter({"busy": 0, "slow": 0}))
    """Connections closed without a response: there were too many, or they took too long."""
    listen_errors: int = 0

    def metrics(self) -> Iterator[MetricFamily]:
        """Yield them as metric families."""
        errors = counter("nfcore_stats_listen_errors_total", "Failed attempts to listen.", "tries")
        errors.add(self.listen_errors)
        responses = counter("nfcore_stats_responses_total", "HTTP responses, by status.", "responses", "code")
        for code, number in sorted(self.responses.items()):
            responses.add(number, code=str(code))
        dropped = counter(
            "nfcore_stats_dropped_total", "Connections closed without a response.", "connections", "reason"
        )
        for reason, number in self.dropped.items():
            dropped.add(number, reason=reason)
        yield from (errors, responses, dropped)


class Endpoint:
    """Listens until it is stopped; tries again while the port is taken. `listen` is as in the TOML."""

    def __init__(self, listen: str, request: Request, health: Health, counters: EndpointCounters) -> None:
        self.listen = listen
        self.listening = False
        self.counters = counters
        self._request = request
        self._health = health
        self._exposition = Exposition()
        self._written: tuple[float, bytes] = (0.0, b"")
        self._collecting: asyncio.Future[bytes | None] | None = None
        self._connections = 0
        self._stop: Callable[[], None] = lambda: None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="stats-http", daemon=True)

    def start(self) -> None:
        """Start the thread; returns after its first attempt to listen."""
        self._thread.start()
        self._ready.wait(RETRY)

    def stop(self) -> None:
        """Stop listening and close every connection."""
        if self._thread.is_alive():
            self._stop()
            self._thread.join(DEADLINE)

    async def _run(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        self._stop = end
        stopping = asyncio.ensure_future(stop.wait())
        reported = ""
        while not stop.is_set():
            try:
                host, port = split_listen(self.listen)
                server = await asyncio.start_server(self._serve, host, port, limit=LONGEST_REQUEST)
            except OSError as error:
                self.counters.listen_errors += 1
                reason = error.strerror or str(error)
                if reason != reported:
                    advice = "until that works only `nfcore stats` has the metrics; trying again"
                    log.warning("stats.listen: cannot listen on %s: %s; %s", self.listen, reason, advice)
                reported = reason
                self._ready.set()
                await asyncio.wait([stopping], timeout=RETRY)
                continue
            self.listening = True
            self._ready.set()
            log.info("stats.listen: http://%s/metrics", self.listen)
            try:
                await stopping
            finally:
                self.listening = False
                server.close()

    # A connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._counted() as has_room, contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(DEADLINE):
                    if has_room:
                        await self._respond(reader, writer)
                    else:
                        self.counters.dropped["busy"] += 1
            except TimeoutError:
                self.counters.dropped["slow"] += 1
                writer.transport.abort()  # discards what the scraper has not read
            finally:
                writer.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[bool]:
        self._connections += 1
        try:
            yield self._connections <= MOST_CONNECTIONS
        finally:
            self._connections -= 1

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            method, response = "", _plain(HTTPStatus.BAD_REQUEST)
        else:
            method, response = await self._handle(head)
        status, content_type, body = response
        self.counters.responses[int(status)] += 1
        lines = [
            f"HTTP/1.1 {int(status)} {status.phrase}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        if method != "HEAD":
            writer.write(body)
        await writer.drain()

    async def _handle(self, head: bytes) -> tuple[str, Response]:
        """Return the method of a request and the response to it."""
        fields = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        if len(fields) != 3 or not fields[2].startswith("HTTP/1."):
            return "", _plain(HTTPStatus.BAD_REQUEST)
        method, path = fields[0], fields[1].partition("?")[0]
        handler = {"/metrics": self._metrics, "/healthz": self._healthz}.get(path)
        if handler is None:
            return method, _plain(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz")
        if method not in ("GET", "HEAD"):
            return method, _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        return method, await handler()

    async def _healthz(self) -> Response:
        troubles = list(self._health.troubles())
        status = HTTPStatus.SERVICE_UNAVAILABLE if troubles else HTTPStatus.OK
        warnings = list(self._health.warnings())
        body = {"status": "unhealthy" if troubles else "ok", "troubles": troubles, "warnings": warnings}
        return status, "application/json", json.dumps(body).encode() + b"\n"

    async def _metrics(self) -> Response:
        body: bytes | None
        when, body = self._written
        if time.monotonic() - when > FRESH:
            if self._collecting is None or self._collecting.done():
                self._collecting = self._collect()
            try:
                # Shielded: other requests wait for the same collection.
                body = await asyncio.wait_for(asyncio.shield(self._collecting), COLLECT_TIMEOUT)
            except TimeoutError:
                message = f"no metrics from the event loop for {COLLECT_TIMEOUT:g} s: see /healthz"
                return _plain(HTTPStatus.SERVICE_UNAVAILABLE, message)
        if body is None:
            message = "the metrics could not be collected: the log has the reason"
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, message)
        return HTTPStatus.OK, CONTENT_TYPE, body

    def _collect(self) -> asyncio.Future[bytes | None]:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bytes | None] = loop.create_future()

        def write(registry: Registry | None) -> None:
            body = None
            try:
                if registry is not None:
                    body = self._exposition.write(registry)
                    self._written = time.monotonic(), body
            except Exception as error:
                log.error("stats: the metrics cannot be written: %s", describe_error(error))
                log.debug("traceback", exc_info=error)
            finally:
                written.set_result(body)  # in any case, or requests would wait for ever

        def hand_over(registry: Registry | None) -> None:
            # RuntimeError: this thread's loop has ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(write, registry)

        self._request(hand_over)
        return written


def _plain(status: HTTPStatus, message: str = "") -> Response:
    return status, "text/plain; charset=utf-8", f"{message or status.phrase}\n".encode()
