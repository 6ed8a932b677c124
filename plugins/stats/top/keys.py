# SPDX-License-Identifier: Apache-2.0
"""The keys of `nfcore top`: from a terminal's bytes to keys, from a key to another view. No terminal, no socket."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .model import FLOW_KEYS, ROW_KEYS

TABLES = ("vips", "reals", "flows")
_NAMES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1bOC": "right",
    b"\x1bOD": "left",
    b"\x1b[Z": "backtab",
    b"\r": "enter",
    b"\n": "enter",
    b"\t": "tab",
    b"\x7f": "backspace",
    b"\x08": "backspace",
}
_SEQUENCE = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|O[@-~])")
_BEGINNING = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*|O)?")


class KeyReader:
    """Decodes the bytes of a terminal, which may come in pieces, into keys."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def waiting(self) -> bool:
        """Whether the last bytes may be the beginning of a sequence or the Escape key; :meth:`flush` decides that."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the complete keys: printable characters as they are, others by name; unknown ones are ignored."""
        self._rest += data
        while self._rest:
            if found := _SEQUENCE.match(self._rest):
                key, self._rest = found[0], self._rest[found.end() :]
                if key in _NAMES:
                    yield _NAMES[key]
            elif _BEGINNING.fullmatch(self._rest):
                return
            elif self._rest.startswith(b"\x1b"):
                self._rest = self._rest[1:]
                yield "escape"
            else:
                key, self._rest = self._rest[:1], self._rest[1:]
                if key in _NAMES:
                    yield _NAMES[key]
                elif b" " <= key <= b"~":
                    yield key.decode()

    def flush(self) -> Iterator[str]:
        """Take the bytes that wait, since no more came, as the Escape key and what follows it."""
        rest, self._rest = self._rest, b""
        if rest:
            yield "escape"
            yield from self.feed(rest[1:])


@dataclass(frozen=True)
class View:
    """Which part of the board is shown, and how."""

    focus: str = "vips"
    """The table that keys act on: one of :data:`TABLES`."""
    sorts: tuple[str, str, str] = ("packets", "packets", "rate")
    """Sort key per table."""
    backwards: bool = False
    text: str = ""
    """The filter."""
    typed: str | None = None
    """The filter while it is being typed."""
    vip: str = ""
    """The VIP that is open."""
    selected: int = 0
    """Row of the focused table."""
    ended: bool = False
    """Whether flows are shown, too, whose connections were closed."""
    only_flows: bool = False
    """There are neither VIPs nor reals, as no function counts any."""
    paused: bool = False
    helping: bool = False
    over: bool = False

    def sort_of(self, table: str) -> str:
        """Return the sort key of a table."""
        return self.sorts[TABLES.index(table)]

    @property
    def tables(self) -> Sequence[str]:
        """The tables that are shown; with a VIP open, only reals and flows."""
        if self.only_flows:
            return TABLES[2:]
        return TABLES[1:] if self.vip else TABLES

    def fitting(self, *, has_rows: bool) -> View:
        """Return the view of a board that has VIPs or reals, or has none."""
        if self.only_flows is not has_rows:
            return self
        return replace(self, only_flows=not has_rows, focus="vips" if has_rows else "flows", selected=0)


def press(view: View, key: str, names: Sequence[str]) -> View:
    """Return the view after a key. names: of the rows of the focused table, as shown."""
    if view.typed is not None:
        return _type(view, key, view.typed)
    if view.helping:
        return replace(view, helping=False, over=key == "q")
    action = _ACTIONS.get(key)
    return action(view, names) if action else view


def _type(view: View, key: str, typed: str) -> View:
    match key:
        case "enter":
            return replace(view, text=typed.strip(), typed=None, selected=0)
        case "escape":
            return replace(view, typed=None)
        case "backspace":
            return replace(view, typed=typed[:-1])
    return replace(view, typed=typed + key) if len(key) == 1 else view


def _sort(view: View, step: int) -> View:
    columns, number = FLOW_KEYS if view.focus == "flows" else ROW_KEYS, TABLES.index(view.focus)
    column = columns[(columns.index(view.sorts[number]) + step) % len(columns)]
    sorts = [*view.sorts[:number], column, *view.sorts[number + 1 :]]
    return replace(view, sorts=(sorts[0], sorts[1], sorts[2]), selected=0)


def _back(view: View) -> View:
    """Remove the filter if there is one, else leave the open VIP."""
    if view.text:
        return replace(view, text="", selected=0)
    if view.vip:
        return replace(view, vip="", focus="vips", selected=0)
    return view


def _move(view: View, names: Sequence[str], step: int) -> View:
    last = max(0, len(names) - 1)
    return replace(view, selected=max(0, min(min(view.selected, last) + step, last)))


def _turn(view: View, step: int) -> View:
    tables = view.tables
    return replace(view, focus=tables[(tables.index(view.focus) + step) % len(tables)], selected=0)


def _enter(view: View, names: Sequence[str]) -> View:
    if view.focus != "vips" or view.selected >= len(names):
        return view
    return replace(view, vip=names[view.selected], focus="flows", selected=0, text="")


_ACTIONS: dict[str, Callable[[View, Sequence[str]], View]] = {
    "q": lambda view, _: replace(view, over=True),
    "h": lambda view, _: replace(view, helping=True),
    "p": lambda view, _: replace(view, paused=not view.paused),
    "/": lambda view, _: replace(view, typed=view.text),
    "r": lambda view, _: replace(view, backwards=not view.backwards),
    "e": lambda view, _: replace(view, ended=not view.ended),
    "s": lambda view, _: _sort(view, 1),
    "S": lambda view, _: _sort(view, -1),
    "up": lambda view, names: _move(view, names, -1),
    "down": lambda view, names: _move(view, names, 1),
    "tab": lambda view, _: _turn(view, 1),
    "backtab": lambda view, _: _turn(view, -1),
    "enter": _enter,
    "escape": lambda view, _: _back(view),
}
_ALIASES = {"?": "h", " ": "p", "k": "up", "j": "down", "right": "s", "left": "S", "backspace": "escape"}
_ACTIONS |= {alias: _ACTIONS[key] for alias, key in _ALIASES.items()}
