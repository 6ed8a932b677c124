# SPDX-License-Identifier: Apache-2.0
"""What docs/architecture.md names is in the tree: its files, and in them its functions and classes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

GUIDE = ROOT / "docs/architecture.md"
CLASSES = {
    "Reader",
    "KatranTable",
    "Config",
    "Numbering",
    "Change",
    "RingBuilder",
    "_Readings",
    "Endpoint",
    "ControlServer",
}
"""Words with a capital in the pictures that are names of classes."""


def pictures() -> Iterator[list[str]]:
    """The lines of each section's picture."""
    for section in GUIDE.read_text(encoding="utf-8").split("\n## ")[1:]:
        yield [line for line in section.splitlines() if line.startswith("    ")]


def named() -> Iterator[tuple[str, str]]:
    """(file, name of a function or class in it, or empty). A name belongs to the file named last before it."""
    for lines in pictures():
        path = ""
        for word in re.finditer(r"[\w.]+(?:/[\w.]+)+\.(?:py|c|h)\b|\w+\(\)|\w+", "\n".join(lines)):
            text = word.group()
            if "/" in text:
                path = text
                yield path, ""
            elif text.endswith("()") or text in CLASSES:
                yield path, text.removesuffix("()")


def test_there_is_a_picture_for_each_way() -> None:
    assert [len(lines) > 10 for lines in pictures()] == [True] * 6
    assert {name for _, name in named()} >= CLASSES


@pytest.mark.parametrize(("path", "name"), sorted(set(named())), ids=": ".join)
def test_what_is_named_is_there(path: str, name: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    if name and path.endswith(".py"):
        assert re.search(rf"^\s*(?:async )?(?:def|class) {name}\b", source, flags=re.MULTILINE), f"{path} has no {name}"
    elif name:
        assert re.search(rf"^[\w ]*[\w*] \*?{name}\(", source, flags=re.MULTILINE), f"{path} has no {name}"


def test_files_in_the_text_are_there() -> None:
    for path in re.findall(r"`([\w.]+(?:/[\w.]+)+\.(?:py|c|h))`", GUIDE.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), path
