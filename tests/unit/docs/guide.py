# SPDX-License-Identifier: Apache-2.0
"""Reads the plugin guide for tests: a section per hook, and the examples as code."""

from __future__ import annotations

import re
from typing import Any

from tests.paths import ROOT

TEXT = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SAME = re.compile(r"The\s+example\s+is\s+that\s+of\s+`(\w+)`\.")


def sections() -> dict[str, str]:
    """Hook → text of its section, in the guide's order."""
    body = TEXT.split("\n## The hooks\n", 1)[1].split("\n## ", 1)[0]
    parts = re.split(r"^### `(\w+)`\n", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def signature(hook: str) -> str:
    """The signature in a hook's section, which comes first."""
    found = _BLOCK.search(sections()[hook])
    assert found is not None, f"the section of {hook} has no signature"
    return found[1].strip()


def example(hook: str) -> str:
    """The code of a hook's example, or of the example that its section refers to."""
    section = sections()[hook]
    if same := _SAME.search(section):
        section = sections()[same[1]]
    blocks = _BLOCK.findall(section)
    assert len(blocks) == 2, f"the section of {hook} should have a signature and an example"
    return str(blocks[1])


def run_example(hook: str, *needs: str) -> dict[str, Any]:
    """Run a hook's example after the examples of the hooks in `needs`; give its global names."""
    imports = next(block for block in _BLOCK.findall(TEXT) if "from nfcore.api.hookspecs import" in block)
    names: dict[str, Any] = {"__name__": __name__}
    exec("\n".join([imports, *map(example, (*needs, hook))]), names)
    return names


def label(section: str, word: str) -> str:
    """The text of a line such as ``- Called on: …``."""
    found = re.search(rf"^- {word}: (.*)$", section, flags=re.MULTILINE)
    return found[1] if found else ""
