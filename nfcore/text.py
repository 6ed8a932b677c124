# SPDX-License-Identifier: Apache-2.0
"""Foreign text (of a plugin, a driver, a label) made safe for a terminal, a log line and a JSON reader."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_INFINITIES = {math.inf: "+Inf", -math.inf: "-Inf"}


def printable(text: str, keep: str = "") -> str:
    """Escape, with a backslash and a code, the characters that control a terminal or end a line.

    Characters in `keep` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def target_text(words: Mapping[str, Any]) -> str:
    """Write what a network function says of a target: two words as ``from → to``, else ``port 80, zone a, queue 3``."""
    if len(words) == 2:
        return " → ".join(map(str, words.values()))
    return ", ".join(f"{key} {value}" for key, value in words.items())


def target_of_flow(words: Mapping[str, Any], other: str = "({})") -> str:
    """Write the same behind a flow, which has the first of two words already: ``→ to``, else as `other` has it."""
    if len(words) == 2:
        return f"→ {list(words.values())[1]}"
    return other.format(target_text(words)) if words else ""


def json_text(value: Any) -> str:
    """Write JSON on one line. Floats that JSON does not have are the texts ``"NaN"``, ``"+Inf"`` and ``"-Inf"``, as
    Prometheus writes them.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return _INFINITIES.get(value, "NaN")
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value
