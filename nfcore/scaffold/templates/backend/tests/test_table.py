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
    assert config.resolved()["my_name"] == {"rules": 4096, "verbose": True}


def test_a_mistake_is_reported_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"my_name\.rules: is 0; input should be"):
        load_config(EXAMPLE, PluginManager(), ["my_name.rules=0"])
