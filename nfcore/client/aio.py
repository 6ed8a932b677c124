# SPDX-License-Identifier: Apache-2.0
"""The client for programs with asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ..control.client import describe_failure, read_response
from ..errors import HostError
from . import calls
from .calls import Call, Changed, Request
from .client import DEFAULT_SOCKET, TIMEOUT, next_request
from .errors import translated
from .flow import Flow, FlowStatus

_T = TypeVar("_T")
_LONGEST_ANSWER = 1 << 30
"""Bytes; asyncio's streams want a limit."""


class AsyncFlowClient:
    """A connection to the daemon. Calls of several tasks wait for each other. Errors: see `FlowClient`."""

    def __init__(self, socket: Path | str = DEFAULT_SOCKET, *, timeout: float = TIMEOUT) -> None:
        """`timeout`: seconds to wait for an answer. The connection is made by :meth:`connect` or `async with`."""
        self._path = Path(socket)
        self._timeout = timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()
        self.daemon: Mapping[str, Any] = {}
        """What the daemon has said about itself: version, number of entries, capacity."""

    async def connect(self) -> None:
        """Connect."""
        try:
            self._streams = await asyncio.open_unix_connection(str(self._path), limit=_LONGEST_ANSWER)
        except OSError as error:
            raise describe_failure(error, self._path) from None
        try:
            self.daemon = await self._run(calls.hello())
        except BaseException:
            await self.close()
            raise

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *about: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def add(self, *flows: Flow) -> Changed:
        """Add entries, all of them or none."""
        return await self.change(flows, ())

    async def delete(self, *names: str) -> Changed:
        """Delete entries by name, all of them or none."""
        return await self.change((), names)

    async def change(self, add: Sequence[Flow | Mapping[str, Any]], delete: Sequence[str] = ()) -> Changed:
        """Delete and add as a whole or not at all; what is deleted goes first, so that an entry can be replaced."""
        return await self._run(calls.change(add, delete))

    def batch(self) -> AsyncBatch:
        """Begin a change in several steps: sent at the end of an `async with` block, never when the block raises."""
        return AsyncBatch(self)

    async def list(
        self, match: str | None = None, *, action: str | None = None, owner: str | None = None
    ) -> AsyncIterator[FlowStatus]:
        """Give the entries, page by page. match: an address or prefix, or part of a name. owner: toml, application."""
        asked = calls.pages(calls.filters(match, action, owner))
        request = next(asked, None)
        while request is not None:
            async with self._turn:
                answer = await self._send(request)
            for status in calls.read_page(answer):
                yield status
            request = next_request(asked, answer)

    async def show(self, name: str) -> FlowStatus:
        """Give one entry. FlowError: there is none of this name."""
        return await self._run(calls.show(name))

    async def clear(self) -> int:
        """Delete all entries of applications; returns how many."""
        return await self._run(calls.clear())

    async def stats(self) -> Sequence[Mapping[str, Any]]:
        """Give the daemon's metrics, as `nfcore stats --json` does."""
        return await self._run(calls.stats())

    async def flows(self, **parameters: Any) -> Sequence[Mapping[str, Any]]:
        """Give the flows that the daemon knows, as `nfcore flows --json` does: match, states, sort, limit."""
        return await self._run(calls.flows(parameters))

    async def _run(self, call: Call[_T]) -> _T:
        try:
            async with self._turn:
                request = next(call)
                while True:
                    try:
                        answer = await self._send(request)
                    except Exception as error:  # noqa: BLE001 - the call may have to clear up
                        request = call.throw(error)
                    else:
                        request = call.send(answer)
        except StopIteration as done:
            result: _T = done.value
            return result

    async def _send(self, request: Request) -> Any:
        if self._streams is None:
            raise HostError("the client is not connected: use it in `async with`, or await connect()")
        reader, writer = self._streams
        line = json.dumps({"method": request.method, "params": request.parameters}).encode() + b"\n"
        try:
            async with asyncio.timeout(self._timeout):
                writer.write(line)
                await writer.drain()
                answer = await reader.readline()
        except asyncio.CancelledError:
            await self.close()  # the next request would get this one's answer
            raise
        except (OSError, ValueError) as error:
            await self.close()
            raise describe_failure(error, self._path) from None
        with translated():
            try:
                return read_response(answer, self._path)
            except ValueError as error:
                raise describe_failure(error, self._path) from None


class AsyncBatch(calls.Collected):
    """A change that is collected, and made at the end of its `async with` block."""

    def __init__(self, client: AsyncFlowClient) -> None:
        super().__init__()
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.changed = await self._client.change(self.added, self.deleted)
