# SPDX-License-Identifier: Apache-2.0
"""What each call asks of the daemon, the same for both clients.

A call is a generator: it yields requests, gets the result of each, and returns what the caller gets. The clients differ
only in how they send a request. An error of the daemon is raised at the `yield`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import HostError, NfcoreError
from .flow import Flow, FlowStatus

PROTOCOL = 1
"""Version of the protocol that this client speaks."""
LINE_LIMIT = 120_000
"""Bytes of a request; the daemon takes 131,072."""
PAGE = 1_000
_T = TypeVar("_T")


@dataclass(frozen=True)
class Request:
    """One request: a method and its parameters."""

    method: str
    parameters: Mapping[str, Any]


Call = Generator[Request, Any, _T]


class Collected:
    """Changes that are collected, to be made together."""

    def __init__(self) -> None:
        self.added: list[Flow | Mapping[str, Any]] = []
        self.deleted: list[str] = []
        self.changed: Changed | None = None
        """What the change has done, once it is made."""

    def add(self, *flows: Flow) -> None:
        """Add entries."""
        self.added += flows

    def delete(self, *names: str) -> None:
        """Delete entries by name; this happens before any is added."""
        self.deleted += names


@dataclass(frozen=True)
class Changed:
    """How many entries a change has added and deleted."""

    added: int
    deleted: int


def hello() -> Call[Mapping[str, Any]]:
    """Ask for the version. HostError: the daemon speaks another one."""
    answer: Mapping[str, Any] = yield Request("flow.hello", {})
    if answer.get("protocol") != PROTOCOL:
        text = f"the daemon speaks version {answer.get('protocol')!r:.20} of the protocol for flows, this client"
        raise HostError(f"{text} {PROTOCOL}: use the client of the daemon's nfcore")
    return answer


def change(add: Iterable[Flow | Mapping[str, Any]], delete: Sequence[str]) -> Call[Changed]:
    """Add and delete as a whole: in one request when they fit, else as a batch."""
    entries = [entry.to_json() if isinstance(entry, Flow) else dict(entry) for entry in add]
    parts = list(_parts(entries, delete))
    if len(parts) == 1:
        answer = yield Request("flow.change", parts[0])
        return Changed(answer["added"], answer["deleted"])
    token = (yield Request("flow.begin", {}))["batch"]
    try:
        for part in parts:
            yield Request("flow.put", {"batch": token, **part})
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            with suppress(NfcoreError):  # what has gone wrong before is the news
                yield Request("flow.abort", {"batch": token})
        raise
    answer = yield Request("flow.commit", {"batch": token})
    return Changed(answer["added"], answer["deleted"])


def pages(filters: Mapping[str, Any]) -> Generator[Request, Any, None]:
    """Ask for entries page by page; the results are the client's to read by :func:`read_page`."""
    after: int | None = -1
    while after is not None:
        answer = yield Request("flow.list", {**filters, "after": after, "limit": PAGE})
        after = answer["next"]


def read_page(answer: Mapping[str, Any]) -> list[FlowStatus]:
    """Read the entries of a page."""
    return [FlowStatus.from_json(row) for row in answer["entries"]]


def filters(match: str | None, action: str | None, owner: str | None) -> dict[str, Any]:
    """Give the parameters of a filter."""
    given = {"match": match, "action": action, "owner": owner}
    return {key: value for key, value in given.items() if value is not None}


def show(name: str) -> Call[FlowStatus]:
    """Ask for one entry."""
    return FlowStatus.from_json((yield Request("flow.show", {"name": name})))


def clear() -> Call[int]:
    """Delete all entries of applications."""
    deleted: int = (yield Request("flow.clear", {}))["deleted"]
    return deleted


def stats() -> Call[list[dict[str, Any]]]:
    """Ask for the daemon's metrics."""
    metrics: list[dict[str, Any]] = (yield Request("stats", {}))["metrics"]
    return metrics


def flows(parameters: Mapping[str, Any]) -> Call[list[dict[str, Any]]]:
    """Ask for the flows that the daemon knows."""
    rows: list[dict[str, Any]] = (yield Request("flows", parameters))["flows"]
    return rows


def _parts(entries: Sequence[Mapping[str, Any]], delete: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Cut a change into parts that fit into a request. What is deleted comes with the first ones."""
    part: dict[str, Sequence[Any]] = {"add": [], "delete": []}
    size = 0
    for key, items in (("delete", delete), ("add", entries)):
        for chunk, length in _chunks(items):
            if size + length > LINE_LIMIT and size:
                yield part
                part, size = {"add": [], "delete": []}, 0
            part[key] = [*part[key], *chunk]
            size += length
    yield part


def _chunks(items: Sequence[Any], most: int = 400) -> Iterator[tuple[Sequence[Any], int]]:
    """Cut a list into pieces that fit into a request, each with its length as JSON."""
    for at in range(0, len(items), most):
        chunk = items[at : at + most]
        length = len(json.dumps(chunk))
        if length <= LINE_LIMIT or len(chunk) == 1:
            yield chunk, length
        else:
            yield from _chunks(chunk, (len(chunk) + 1) // 2)
