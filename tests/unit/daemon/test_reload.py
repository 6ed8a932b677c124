# SPDX-License-Identifier: Apache-2.0
"""A reload is taken over by every plugin or by none."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfcore.api.config import Config, ConfigTable, Section
from nfcore.api.hookspecs import hookimpl
from nfcore.config.loader import load_config
from nfcore.daemon.bootstrap import make_context, make_engine
from nfcore.daemon.reload import reload
from nfcore.errors import ConfigError, HostError, NfcoreError, Problem
from nfcore.hooks import discovery
from nfcore.hooks.manager import PluginManager


class Takes:
    """A plugin with one key, which it takes over, or refuses."""

    def __init__(self, name: str, notes: list[str], refusal: NfcoreError | None = None) -> None:
        self._name, self._notes, self._refusal = name, notes, refusal

    class Sized(ConfigTable):
        size: int = 1

    @hookimpl
    def config_section(self) -> Section:
        return Section(self.Sized)

    @hookimpl
    def reconfigure(self, config: Config) -> None:
        size = config.sections[self._name].model_dump()["size"]
        if size == 2 and self._refusal:
            raise self._refusal
        self._notes.append(f"{self._name} {size}")


@pytest.mark.parametrize(
    "refusal",
    [ConfigError("nf.toml", [Problem("c.size", "cannot be 2")]), HostError("c.size: cannot be 2: the kernel refuses")],
)
def test_a_refused_reload_is_undone_where_it_had_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: NfcoreError
) -> None:
    notes: list[str] = []
    named = {"a": Takes("a", notes), "b": Takes("b", notes), "c": Takes("c", notes, refusal)}
    monkeypatch.setattr(discovery, "installed", (lambda: dict.fromkeys(named)))
    monkeypatch.setattr(PluginManager, "load", lambda plugins, name: plugins.register(named[name], name))
    path = tmp_path / "nf.toml"
    text = '[nf]\nplugins = ["a", "b", "c"]\n[a]\nsize = {0}\n[b]\nsize = {0}\n[c]\nsize = {0}\n'
    path.write_text(text.format(1))
    plugins = PluginManager()
    loaded = load_config(path, plugins)
    engine = make_engine(make_context(loaded, plugins, []), plugins, {})
    path.write_text(text.format(2))
    with pytest.raises(type(refusal), match=r"c\.size: cannot be 2"):
        reload(engine, plugins)
    assert notes == ["a 2", "b 2", "b 1", "a 1"]
    assert engine.context.config is loaded
