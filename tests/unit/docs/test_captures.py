# SPDX-License-Identifier: Apache-2.0
"""The guide to captures has every reason, with the verdicts that packets get for it."""

from __future__ import annotations

import re

from nfcore.plugins.katran_accel.capture.reasons import REASONS, VERDICTS
from tests.paths import ROOT

GUIDE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def test_the_guide_has_every_reason() -> None:
    section = GUIDE.split("\n## Captures\n", 1)[1].split("\n## ", 1)[0]
    table = re.findall(r"^\| (`[^|]+`) \| (\w+(?:, \w+)*) \|", section, flags=re.MULTILINE)
    assert {reason for reasons, _ in table for reason in re.findall(r"`(\w+)`", reasons)} == REASONS.keys()
    assert {verdict for _, verdicts in table for verdict in verdicts.split(", ")} == VERDICTS.keys() | {"any"}
