# SPDX-License-Identifier: Apache-2.0
"""Words of others - a plugin's, a driver's, a label's - made fit for a terminal, a line of the log, a JSON reader."""

from __future__ import annotations

import json
import math
from typing import Any

_WORDS = {math.inf: "+Inf", -math.inf: "-Inf"}


def printable(text: str, keep: str = "") -> str:
    """Give a text with what steers a terminal or ends a line written as a backslash and a code.

    Characters of `keep` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def json_text(value: Any) -> str:
    """Write JSON, on a line, that every reader takes: floats without a number are the texts ``"NaN"``, ``"+Inf"`` and
    ``"-Inf"``, as Prometheus writes them.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_with_words(value), allow_nan=False)


def _with_words(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return _WORDS.get(value, "NaN")
        case dict():
            return {key: _with_words(each) for key, each in value.items()}
        case list() | tuple():
            return [_with_words(each) for each in value]
    return value
