# SPDX-License-Identifier: Apache-2.0
"""The plugin's table in a TOML."""

from __future__ import annotations

from pathlib import Path

import pytest
from nfcore.config.loader import load_config
from nfcore.errors import ConfigError
from nfcore.hooks.manager import PluginManager

EXAMPLE = Path(__file__).parents[1] / "example.toml"


def test_the_example_is_valid() -> None:
    config = load_config(EXAMPLE, PluginManager())
    assert config.resolved()["my_name"] == {"ports": [80, 443], "flows": 65_536}


def test_mistakes_are_reported_with_their_keys() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(EXAMPLE, PluginManager(), ["my_name.ports=[80, 0, 80]"])
    keys = [problem.path.removeprefix("my_name.") for problem in refused.value.problems]
    assert sorted(keys) == ["ports[1]", "ports[2]"]
