# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal or in a pipe: with lines, or as plain columns where there are many rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ..text import printable, target_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MOST_DRAWN = 400
"""Rows of a table with lines, a quarter of a millisecond each: plain columns take a hundredth of that."""
PIPE_WIDTH = 200
"""Columns of a line in a pipe, for which cells are folded between words."""
MOST_WORDS = 3
"""Columns for what one network function says of its targets; more words are written into one."""
ABBREVIATION = 3
"""Letters of a function's word up to which it is a title in capitals, as VIP and CPU are."""
_GAP = "  "
_PROSE = 6
"""Words from which on a cell is prose, which is folded before names and numbers are."""
_NARROWEST = 24
"""Columns that folded prose has at least."""


class TextTable:
    """Titles and rows of text. Control characters are escaped, as plugins may put some there; line ends stay."""

    def __init__(self, *titles: str) -> None:
        self.titles = titles
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row, a cell for each title."""
        self.rows.append(tuple(printable(cell, "\n") for cell in cells))


def show(table: TextTable | RichTable) -> None:
    """Print a table: folded to the width of a terminal, to `PIPE_WIDTH` elsewhere; no cell is cut.

    Not so many rows: these are printed as plain columns.
    """
    terminal = sys.stdout.isatty()
    if not isinstance(table, TextTable):
        _show_rich(table)
    elif len(table.rows) > MOST_DRAWN:
        print("\n".join(_plain(table, None if terminal else PIPE_WIDTH)))
    else:
        _show_rich(_drawn(table, None if terminal else PIPE_WIDTH))


def _drawn(table: TextTable, width: int | None) -> RichTable:
    from rich.table import Table as RichTable

    drawn = RichTable()
    # Between two columns there are two blanks and a line.
    for title, limit in zip(table.titles, _widths(table, 3, width and width - 4), strict=True):
        drawn.add_column(title, width=limit if width else None)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def _show_rich(table: RichTable) -> None:
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    # Texts such as "[offload]" and 2001:db8:a:1, in which ":a:" names an emoji, are printed as they are.
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        needed = Console(width=10_000, markup=False, emoji=False).measure(table).maximum
        console = Console(width=min(needed, PIPE_WIDTH), markup=False, emoji=False)
    console.print(table)


def _widths(table: TextTable, gap: int, width: int | None) -> list[int]:
    """Give the widths of the columns, folded so that a line with `gap` between two of them fits into `width`."""
    rows = [table.titles, *table.rows]
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    return widths if width is None else _folded(rows, widths, width - gap * (len(widths) - 1))


def _plain(table: TextTable, width: int | None) -> Iterator[str]:
    """Write aligned columns, a line per row; rows with prose take several where lines would be longer than `width`."""
    rows = [table.titles, *table.rows]
    widths = _widths(table, len(_GAP), width)
    for row in rows:
        if all(_cells(cell) <= limit for cell, limit in zip(row, widths, strict=True)) and "\n" not in "".join(row):
            yield _line(row, widths)
            continue
        parts = (_fold(cell, limit) for cell, limit in zip(row, widths, strict=True))
        for line in zip_longest(*parts, fillvalue=""):
            yield _line(line, widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cell + " " * (width - _cells(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _folded(rows: Sequence[Sequence[str]], widths: Sequence[int], room: int) -> list[int]:
    """Give widths that fit into `room`: first prose gives way, then what has several words; words are broken last."""
    fitting, columns = list(widths), list(zip(*rows, strict=True))
    for words, least in ((_PROSE, _NARROWEST), (2, 1), (0, _NARROWEST)):
        if sum(fitting) <= room:
            break
        longest = {
            number: max(_cells(word) for cell in column for word in cell.split() or ("",)) if words else 0
            for number, column in enumerate(columns)
            if max(len(cell.split()) for cell in column) >= words
        }
        for limit in range(room, least - 1, -1):
            for number, word in longest.items():
                fitting[number] = min(fitting[number], max(limit, word))
            if sum(fitting) <= room:
                break
    return fitting


def _fold(cell: str, width: int) -> list[str]:
    """Break a cell into lines between words."""
    lines: list[str] = []
    for line in cell.split("\n"):
        lines.append("")
        for word in (part for whole in line.split() for part in _parts(whole, width)):
            longer = f"{lines[-1]} {word}".lstrip()
            if lines[-1] and _cells(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines


def _parts(word: str, width: int) -> list[str]:
    """Break a word that is wider than its column. Wide characters take two cells."""
    size = width if word.isascii() else max(width // 2, 1)
    return [word[at : at + size] for at in range(0, len(word), size)] if _cells(word) > width else [word]


def _cells(text: str) -> int:
    """Columns of the longest line of a text."""
    if text.isascii():
        return len(text) if "\n" not in text else max(map(len, text.split("\n")))
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def target_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Give the titles and cells of the columns that tell of targets, for rows with ``nf`` and ``target``.

    Where all are of one function, the columns are its own words, short ones in capitals; else function and target.
    """
    words = list(dict.fromkeys(key for row in rows for key in row["target"]))
    if len({row["nf"] for row in rows}) == 1 and 0 < len(words) <= MOST_WORDS:
        titles = [word.upper() if len(word) <= ABBREVIATION else word for word in words]
        return titles, [[row["target"].get(word, "") for word in words] for row in rows]
    return ["function", "target"], [[row["nf"], target_text(row["target"])] for row in rows]
