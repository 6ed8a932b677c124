# SPDX-License-Identifier: Apache-2.0
"""Long answers, made and written as JSON a little at a time: nobody else has to wait for the whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

TOGETHER = 32
"""Rows written at once."""


class JsonRows:
    """A list of JSON values of which each is made when its turn comes, be it in an answer or for whoever iterates.

    What they are made from must not change meanwhile: take a copy of what does.
    """

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        """Let `make` give the rows, anew each time that somebody asks for them."""
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


def encode(value: Any) -> Iterator[str]:
    """Give a JSON value in pieces, row by row where there are :class:`JsonRows`. TypeError, ValueError: it is none."""
    if isinstance(value, JsonRows):
        yield from _list(value)
    elif _has_rows(value):
        between = "{"
        for key, each in value.items():
            yield f"{between}{json.dumps(str(key))}: "
            yield from encode(each)
            between = ", "
        yield "}"
    else:
        yield json.dumps(value)


def _list(rows: JsonRows) -> Iterator[str]:
    between, batch = "[", []
    for row in rows:
        if not _has_rows(row):
            batch.append(row)
            if len(batch) < TOGETHER:
                continue
        if batch:
            yield f"{between}{json.dumps(batch)[1:-1]}"
            between, batch = ", ", []
        if _has_rows(row):
            yield between
            yield from encode(row)
            between = ", "
    if batch:
        yield f"{between}{json.dumps(batch)[1:-1]}"
        between = ", "
    yield "[]" if between == "[" else "]"


def materialize(value: Any) -> Any:
    """Give a value with lists in place of :class:`JsonRows`."""
    if isinstance(value, JsonRows):
        return [materialize(row) for row in value]
    return {key: materialize(each) for key, each in value.items()} if isinstance(value, dict) else value


def _has_rows(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_rows(each) for each in value.values())
    return isinstance(value, JsonRows)
