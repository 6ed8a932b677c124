# SPDX-License-Identifier: Apache-2.0
"""The plugin's table in a TOML. The keys come from the model: a new one is tested as soon as it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from nfcore.config.loader import load_config
from nfcore.errors import ConfigError
from nfcore.hooks.manager import PluginManager

from nfcore_my_name.meter import NAME
from nfcore_my_name.plugin import MyNameTable

EXAMPLE = Path(__file__).parents[1] / "example.toml"
README = EXAMPLE.with_name("README.md")


def test_the_example_is_valid() -> None:
    config = load_config(EXAMPLE, PluginManager())
    assert set(config.resolved()[NAME]) == set(MyNameTable.model_fields)


@pytest.mark.parametrize("key", [*MyNameTable.model_fields, "no_such_key"])
def test_a_mistake_is_reported_with_its_key(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(EXAMPLE, PluginManager(), [f"{NAME}.{key}={{a = 1}}"])
    assert {problem.path for problem in refused.value.problems} == {f"{NAME}.{key}"}


@pytest.mark.parametrize("key", MyNameTable.model_fields)
def test_the_readme_has_each_key(key: str) -> None:
    assert f"| `{key}` |" in README.read_text(encoding="utf-8")
