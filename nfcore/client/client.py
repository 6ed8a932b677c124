# SPDX-License-Identifier: Apache-2.0
"""The client for programs without an event loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ..control.client import Client, NotAllowedError, RefusedError
from . import calls
from .calls import Call, Changed, Request
from .errors import translated
from .flow import Flow, FlowStatus

DEFAULT_SOCKET = "/run/nfcore/nfcore.sock"
TIMEOUT = 60.0
"""Seconds to wait for the answer to a request: a change of 1,000,000 entries takes some."""
_T = TypeVar("_T")


class FlowClient:
    """A connection to the daemon, for one thread.

    NoDaemonError: nobody answers at the socket. NotAllowedError: the user may not open it, or not change flows.
    FlowError: the daemon does not take what was asked; it names the entry.
    """

    def __init__(self, socket: Path | str = DEFAULT_SOCKET, *, timeout: float = TIMEOUT) -> None:
        """Connect. `timeout`: seconds to wait for an answer."""
        self._client = Client(Path(socket), timeout)
        try:
            self.daemon = self._run(calls.hello())
            """What the daemon has said about itself: version, number of entries, capacity."""
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._client.close()

    def add(self, *flows: Flow) -> Changed:
        """Add entries, all of them or none."""
        return self.change(flows, ())

    def delete(self, *names: str) -> Changed:
        """Delete entries by name, all of them or none."""
        return self.change((), names)

    def change(self, add: Sequence[Flow | Mapping[str, Any]], delete: Sequence[str] = ()) -> Changed:
        """Delete and add as a whole or not at all; what is deleted goes first, so that an entry can be replaced."""
        return self._run(calls.change(add, delete))

    def batch(self) -> Batch:
        """Begin a change in several steps: sent at the end of a `with` block, and never when the block raises."""
        return Batch(self)

    def list(
        self, match: str | None = None, *, action: str | None = None, owner: str | None = None
    ) -> Iterator[FlowStatus]:
        """Give the entries, page by page. match: an address or prefix, or part of a name. owner: toml, application."""
        asked = calls.pages(calls.filters(match, action, owner))
        request = next(asked, None)
        while request is not None:
            answer = self._send(request)
            yield from calls.read_page(answer)
            request = next_request(asked, answer)

    def show(self, name: str) -> FlowStatus:
        """Give one entry. FlowError: there is none of this name."""
        return self._run(calls.show(name))

    def clear(self) -> int:
        """Delete all entries of applications; returns how many."""
        return self._run(calls.clear())

    def stats(self) -> Sequence[Mapping[str, Any]]:
        """Give the daemon's metrics, as `nfcore stats --json` does."""
        return self._run(calls.stats())

    def flows(self, **parameters: Any) -> Sequence[Mapping[str, Any]]:
        """Give the flows that the daemon knows, as `nfcore flows --json` does: match, states, sort, limit."""
        return self._run(calls.flows(parameters))

    def _run(self, call: Call[_T]) -> _T:
        try:
            request = next(call)
            while True:
                try:
                    answer = self._send(request)
                except Exception as error:  # noqa: BLE001 - the call may have to clear up
                    request = call.throw(error)
                else:
                    request = call.send(answer)
        except StopIteration as done:
            result: _T = done.value
            return result

    def _send(self, request: Request) -> Any:
        with translated():
            try:
                return self._client.request(request.method, **request.parameters)
            except (RefusedError, NotAllowedError):
                raise
            except BaseException:
                self.close()  # the next request would get this one's answer
                raise


class Batch(calls.Collected):
    """A change that is collected, and made at the end of its `with` block."""

    def __init__(self, client: FlowClient) -> None:
        super().__init__()
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.changed = self._client.change(self.added, self.deleted)


def next_request(asked: Generator[Request, Any, None], answer: Any) -> Request | None:
    """Give the next request of a call after an answer, or None."""
    try:
        return asked.send(answer)
    except StopIteration:
        return None
