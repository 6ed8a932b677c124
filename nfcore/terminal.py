# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal or in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table: folded to a terminal's width, in full length elsewhere, and never cut."""
    for column in table.columns:
        column.overflow = "fold"
    # What is shown says "[offload]" and means it.
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(width=Console(width=10_000, markup=False).measure(table).maximum, markup=False)
    console.print(table)
