# SPDX-License-Identifier: Apache-2.0
"""Each difference to Katran that the page tells has the test that it names."""

from __future__ import annotations

import re

from tests.paths import ROOT

PAGE = (ROOT / "docs/katran.md").read_text(encoding="utf-8")


def test_every_difference_has_a_test_that_exists() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| Katran")]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) >= 10 and all(len(names) == 1 for names in named)
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {name for (name,) in named} <= defined
