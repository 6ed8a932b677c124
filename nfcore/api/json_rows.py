# SPDX-License-Identifier: Apache-2.0
"""Long results, made and written as JSON row by row, so that the event loop can do other work in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ROWS_PER_PIECE = 32
"""Rows that :func:`encode` gives at once."""


class JsonRows:
    """A list of JSON values, each of which is made only when it is needed.

    The data from which the rows are made must not change meanwhile: copy what may change.
    """

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        """`make` gives the rows; each iteration calls it again."""
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


def encode(value: Any) -> Iterator[str]:
    """Write a JSON value in pieces, :class:`JsonRows` row by row. TypeError or ValueError when JSON cannot hold it."""
    if isinstance(value, JsonRows):
        yield from _list(value)
    elif _has_rows(value):
        separator = "{"
        for key, inner in value.items():
            yield f"{separator}{json.dumps(str(key))}: "
            yield from encode(inner)
            separator = ", "
        yield "}"
    else:
        yield json.dumps(value)


def _list(rows: JsonRows) -> Iterator[str]:
    separator, batch = "[", []
    for row in rows:
        if not _has_rows(row):
            batch.append(row)
            if len(batch) < ROWS_PER_PIECE:
                continue
        if batch:
            yield f"{separator}{json.dumps(batch)[1:-1]}"
            separator, batch = ", ", []
        if _has_rows(row):
            yield separator
            yield from encode(row)
            separator = ", "
    if batch:
        yield f"{separator}{json.dumps(batch)[1:-1]}"
        separator = ", "
    yield "[]" if separator == "[" else "]"


def materialize(value: Any) -> Any:
    """Replace :class:`JsonRows` in a value by lists."""
    if isinstance(value, JsonRows):
        return [materialize(row) for row in value]
    return {key: materialize(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _has_rows(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_rows(inner) for inner in value.values())
    return isinstance(value, JsonRows)
