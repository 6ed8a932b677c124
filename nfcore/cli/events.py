# SPDX-License-Identifier: Apache-2.0
"""`nfcore events`: requests events until there are no more, or forever with --follow; prints one per line."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..api.config import parse_duration
from ..control.client import Client, EndedError
from ..errors import ConfigError, Problem
from ..text import json_text, printable, target_of_flow
from .stdio import stdout_is_closed

FOLLOWED_FROM = 10
"""Past events that --follow begins with, as `journalctl -f` does."""
WAIT = 1.0
"""Seconds that one request waits for an event. A closed output pipe is noticed only between two requests."""


@dataclass(frozen=True)
class Selection:
    """Which events to print. An empty list or text selects all."""

    kinds: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    match: str = ""
    last: int | None = None
    since: str = ""

    def first_parameters(self, *, follow: bool, now: float) -> dict[str, Any]:
        """Return the parameters of the first request. ConfigError: `since` is no time."""
        parameters = self.filters()
        if self.last is not None:
            parameters["last"] = self.last
        elif follow and not self.since:
            parameters["last"] = FOLLOWED_FROM
        if self.since:
            parameters["after"] = parse_since(self.since, now)
        return parameters

    def filters(self) -> dict[str, Any]:
        """Return the parameters that every request has."""
        filters = {"kinds": self.kinds, "reasons": self.reasons, "interfaces": self.interfaces, "match": self.match}
        return {name: value for name, value in filters.items() if value}


def parse_since(text: str, now: float) -> float:
    """Return the seconds since the epoch that ``5m`` (ago), ``12:30``, ``12:30:05`` or ``2026-03-01 12:30`` stands for.

    Times are local unless they have an offset. ConfigError: the text is none of those.
    """
    try:
        return max(0.0, now - parse_duration(text))
    except ValueError:
        pass
    today = datetime.fromtimestamp(now).date().isoformat()
    for candidate in (text, f"{today} {text}"):
        try:
            return max(0.0, datetime.fromisoformat(candidate).timestamp())
        except (ValueError, OverflowError, OSError):
            continue
    message = f"is {text!r}; should be a duration such as '5m', or a time such as '12:30' or '2026-03-01 12:30:05'"
    raise ConfigError("events", [Problem("since", message)])


def show_events(socket: Path, selection: Selection, *, follow: bool, as_json: bool) -> None:
    """Print events to standard output, how many were lost to standard error. EndedError: the daemon ended meanwhile."""
    for answer in request_events(socket, selection, follow=follow):
        if answer["lost"]:
            print(f"{answer['lost']:,} events came too fast and were lost", file=sys.stderr, flush=True)
        for event in answer["events"]:
            print(as_json_line(event) if as_json else printable(as_line(event)))
        sys.stdout.flush()
        if stdout_is_closed():
            raise BrokenPipeError(errno.EPIPE, "the reader of standard output has closed it")


def request_events(socket: Path, selection: Selection, *, follow: bool) -> Iterator[dict[str, Any]]:
    """Yield the daemon's answers one after the other. EndedError: the daemon ended meanwhile."""
    parameters = selection.first_parameters(follow=follow, now=time.time())
    with Client(socket, timeout=WAIT + 30.0) as daemon:
        last, newest = parameters.get("last"), None
        while True:
            try:
                answer = daemon.request("events", **parameters)
            except EndedError:
                raise EndedError(f"the daemon at {socket} has ended") from None
            yield answer
            newest = answer["newest"] if newest is None else newest
            if not follow and (not answer["events"] or answer["next"] >= newest):
                return  # events since the first answer are not requested
            parameters = selection.filters() | {"since": answer["next"]}
            if last is not None and not follow:
                last -= len(answer["events"])
                if last <= 0:
                    return
                parameters["limit"] = last
            if follow:
                parameters["wait"] = WAIT


def as_json_line(event: dict[str, Any]) -> str:
    """Format an event as a JSON object; its time is UTC, in ISO 8601."""
    stamp = datetime.fromtimestamp(event["time"], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json_text(event | {"time": stamp})


def as_line(event: dict[str, Any]) -> str:
    """Format an event as one line of text; its time is local."""
    stamp = datetime.fromtimestamp(event["time"]).isoformat(" ", "milliseconds")
    head = f"{stamp}  {event['kind']:<9}"
    if "flow" not in event:
        where = f"{event['interface']}: " if event.get("interface") else ""
        return f"{head}  {where}{event['message']}"
    parts = [f"{event['flow']}"]
    if event.get("target"):
        parts.append(target_of_flow(event["target"]))
    if event.get("mark"):
        parts.append(f"mark {event['mark']}")
    where = " ".join(str(event[key]) for key in ("backend", "interface") if event.get(key))
    if where:
        parts.append(f"({where.replace(' ', ' on ')})")
    line = f"{head}  {' '.join(parts)}"
    details = [f"{event['packets']:,} packets, {event['bytes']:,} bytes"] if event.get("packets") else []
    details += [event[key] for key in ("why", "message") if event.get(key)]
    return f"{line}: {'; '.join(details)}" if details else line
