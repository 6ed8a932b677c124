# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from ..text import printable


class TextTable(RichTable):
    """A table that escapes control characters in its cells, as plugins may put some there; line ends stay."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; cells that are text are escaped."""
        super().add_row(*(printable(cell, "\n") if isinstance(cell, str) else cell for cell in cells), **options)


def show(table: RichTable) -> None:
    """Print a table: folded to the width of a terminal, at full width elsewhere; no cell is cut."""
    for column in table.columns:
        column.overflow = "fold"
    # Without markup: a text such as "[offload]" is printed as it is.
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(width=Console(width=10_000, markup=False).measure(table).maximum, markup=False)
    console.print(table)


def show_plain(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, not folded: for many rows, which take a :class:`TextTable` minutes."""
    texts = [titles, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
