# SPDX-License-Identifier: Apache-2.0
"""`nfcore events`: asks for events until there are no more, or for good, and writes each on a line."""

from __future__ import annotations

import errno
import select
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
from ..text import json_text, printable

FOLLOWED_FROM = 10
"""Events that a follower is shown of the past, as by `journalctl -f`."""
WAIT = 1.0
"""Seconds that one question waits for an event: as long as a follower may not know that nobody reads it any more."""


@dataclass(frozen=True)
class Wanted:
    """Which events. Empty lists and texts ask for all."""

    kinds: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    match: str = ""
    last: int | None = None
    since: str = ""

    def first_question(self, *, follow: bool, now: float) -> dict[str, Any]:
        """Give the parameters of the first question. ConfigError: `since` is no time."""
        asked: dict[str, Any] = {}
        if self.last is not None:
            asked["last"] = self.last
        elif follow and not self.since:
            asked["last"] = FOLLOWED_FROM
        if self.since:
            asked["after"] = parse_since(self.since, now)
        return asked | self.filters()

    def filters(self) -> dict[str, Any]:
        """Give the parameters of every question."""
        given = {"kinds": self.kinds, "reasons": self.reasons, "interfaces": self.interfaces, "match": self.match}
        return {name: value for name, value in given.items() if value}


def parse_since(text: str, now: float) -> float:
    """Give the seconds since the epoch that a person means by ``5m``, ``12:30``, ``12:30:05`` or ``2026-03-01 12:30``,
    in local time unless it has an offset. ConfigError when it is none of those.
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


def show_events(socket: Path, wanted: Wanted, *, follow: bool, as_json: bool) -> None:
    """Print events to standard output, what was lost to standard error. EndedError when the daemon ends meanwhile."""
    for answer in ask(socket, wanted, follow=follow):
        if answer["lost"]:
            print(f"{answer['lost']:,} events came too fast and were lost", file=sys.stderr, flush=True)
        for event in answer["events"]:
            print(as_json_line(event) if as_json else printable(as_line(event)))
        sys.stdout.flush()
        if _reader_is_gone():
            raise BrokenPipeError(errno.EPIPE, "nobody reads what is written")


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that was closed, also while there is nothing to write."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def ask(socket: Path, wanted: Wanted, *, follow: bool) -> Iterator[dict[str, Any]]:
    """Give one answer of the daemon after the other."""
    question = wanted.first_question(follow=follow, now=time.time())
    with Client(socket, timeout=WAIT + 30.0) as daemon:
        last, newest = question.get("last"), None
        while True:
            try:
                answer = daemon.ask("events", **question)
            except EndedError:
                raise EndedError(f"the daemon at {socket} has ended") from None
            yield answer
            newest = answer["newest"] if newest is None else newest
            if not follow and (not answer["events"] or answer["next"] >= newest):
                return  # what has happened since the first answer is not asked for
            question = wanted.filters() | {"since": answer["next"]}
            if last is not None and not follow:
                last -= len(answer["events"])
                if last <= 0:
                    return
                question["limit"] = last
            if follow:
                question["wait"] = WAIT


def as_json_line(event: dict[str, Any]) -> str:
    """Write an event as a JSON object; its time is UTC, as ISO 8601 has it."""
    stamp = datetime.fromtimestamp(event["time"], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json_text(event | {"time": stamp})


def as_line(event: dict[str, Any]) -> str:
    """Write an event for a person; its time is local."""
    stamp = datetime.fromtimestamp(event["time"]).isoformat(" ", "milliseconds")
    head = f"{stamp}  {event['kind']:<9}"
    if "flow" not in event:
        where = f"{event['interface']}: " if event.get("interface") else ""
        return f"{head}  {where}{event['message']}"
    parts = [f"{event['flow']}"]
    if event.get("real"):
        parts.append(f"→ {event['real']}")
    if event.get("mark"):
        parts.append(f"mark {event['mark']}")
    where = " ".join(str(event[key]) for key in ("backend", "interface") if event.get(key))
    if where:
        parts.append(f"({where.replace(' ', ' on ')})")
    line = f"{head}  {' '.join(parts)}"
    told = [f"{event['packets']:,} packets, {event['bytes']:,} bytes"] if event.get("packets") else []
    told += [event[key] for key in ("why", "message") if event.get(key)]
    return f"{line}: {'; '.join(told)}" if told else line
