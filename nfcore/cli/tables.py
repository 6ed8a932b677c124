# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal or in a pipe."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ..text import printable


class TextTable(RichTable):
    """A table of texts. What a plugin has put into them steers no terminal; only ends of lines are kept."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(printable(each, "\n") if isinstance(each, str) else each for each in cells), **options)


def show(table: RichTable) -> None:
    """Print a table: folded to a terminal's width, in full length elsewhere, and never cut."""
    for column in table.columns:
        column.overflow = "fold"
    # What is shown says "[offload]" and means it.
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(width=Console(width=10_000, markup=False).measure(table).maximum, markup=False)
    console.print(table)
