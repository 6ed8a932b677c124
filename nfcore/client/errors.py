# SPDX-License-Identifier: Apache-2.0
"""Errors of the daemon as exceptions. All are HostError or NfcoreError, whose text is for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..control.client import NoDaemonError, NotAllowedError, RefusedError
from ..errors import NfcoreError

__all__ = ["FlowError", "NoDaemonError", "NotAllowedError", "translated"]


class FlowError(NfcoreError):
    """The daemon does not take a change of flows; nothing of the change was made."""

    def __init__(self, message: str, problems: Iterable[Mapping[str, Any]] = (), exit_status: int = 2) -> None:
        super().__init__(message)
        self.problems = [dict(problem) for problem in problems]
        """Each with `entry`, `index` (in the order in which they were added), `key` and `message`."""
        self.exit_status = exit_status
        self.details = {"problems": self.problems} if self.problems else {}

    @property
    def entry(self) -> str:
        """Name of the first entry that is wrong; empty when the error is of no entry."""
        return str(self.problems[0].get("entry", "")) if self.problems else ""

    @property
    def key(self) -> str:
        """The key of the entry that is wrong; empty when it is the entry as a whole."""
        return str(self.problems[0].get("key", "")) if self.problems else ""

    @property
    def index(self) -> int:
        """Number of the entry in the order in which they were added; -1 when the error is of no entry."""
        return int(self.problems[0].get("index", -1)) if self.problems else -1


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the daemon into :class:`FlowError`."""
    try:
        yield
    except RefusedError as error:
        problems = error.details.get("problems", ())
        good = problems if isinstance(problems, list) else ()
        listed = [problem for problem in good if isinstance(problem, dict)]
        raise FlowError(_advice(str(error)), listed, error.exit_status) from None


def _advice(message: str) -> str:
    named, _, there = message.partition("; there are: ")
    if named.startswith("no method 'flow.") and "flow." in there:
        return f"{named}: use the client of the daemon's nfcore"
    if named.startswith("no method 'flow."):
        return 'the daemon runs without flow_actions: add "flow_actions" to [nf] plugins and to a chain'
    return message
