# SPDX-License-Identifier: Apache-2.0
"""Each difference to Katran that the page tells has the test that it names, and the model's are all there."""

from __future__ import annotations

import re
from dataclasses import fields

from tests.katran_model.features import KATRAN, Quirks
from tests.paths import ROOT

PAGE = (ROOT / "docs/katran.md").read_text(encoding="utf-8")


def rows() -> list[str]:
    """The lines of the tables that tell a difference."""
    return [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| Katran")]


def test_every_difference_has_a_test_that_exists() -> None:
    named = [re.findall(r"`(test_\w+)`", row) for row in rows()]
    assert len(named) >= 10 and all(len(names) == 1 for names in named)
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {name for (name,) in named} <= defined


def test_every_mistake_of_katrans_is_told_once_by_the_models_name() -> None:
    assert {row.count(" | ") for row in rows()} <= {3, 4}
    told = [name for row in rows() for name in re.findall(r"\| `(\w+)` \|$", row)]
    assert sorted(told) == sorted(field.name for field in fields(Quirks) if getattr(KATRAN, field.name))
