# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom, what files are called, and what each of them must have."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "nfcore"
PLUGINS = ROOT / "plugins"
SOURCES = ("nfcore", "plugins", "bpf", "tests", "demo", "examples", "scripts")
BCC_SEAM = CORE / "kernel/compile_worker.py"


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """Files below folders of the checkout. The symlinks nfcore/plugins and nfcore/bpf are not followed."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    links = [CORE / "plugins", CORE / "bpf"]
    return sorted(path for path in found if not any(path.is_relative_to(link) for link in links))


def module_of(path: Path) -> list[str]:
    """The dotted name of a file's package, as it is when installed."""
    parts = list(path.relative_to(ROOT).parent.parts)
    return ["nfcore", *parts] if parts[0] == "plugins" else parts


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, relative imports resolved; what is imported from a name as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from (f"{full}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def plugin_names() -> list[str]:
    return sorted(path.name for path in PLUGINS.iterdir() if (path / "__init__.py").is_file())


def test_there_is_something_to_look_at() -> None:
    assert len(files("nfcore")) > 20
    assert len(plugin_names()) >= 4
    assert any(name == "nfcore.errors.HostError" for name in imports(CORE / "kernel/xdp.py"))


@pytest.mark.parametrize("path", files("nfcore"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_plugin(path: Path) -> None:
    assert [name for name in imports(path) if within(name, "nfcore.plugins") or within(name, "plugins")] == []


@pytest.mark.parametrize("plugin", plugin_names())
def test_a_plugin_imports_no_other(plugin: str) -> None:
    for path in files(f"plugins/{plugin}"):
        foreign = [
            name
            for name in imports(path)
            if (within(name, "nfcore.plugins") and not within(name, f"nfcore.plugins.{plugin}"))
            or within(name, "plugins")
        ]
        assert foreign == [], path


def test_bcc_stands_behind_one_seam() -> None:
    importers = [path for path in files("nfcore", "plugins", "demo") if any(within(n, "bcc") for n in imports(path))]
    assert importers == [BCC_SEAM]


def test_help_and_check_do_not_load_bcc() -> None:
    script = (
        "import sys; from pathlib import Path; from nfcore.cli.main import app, _add_plugin_commands;"
        "from nfcore.config.loader import load_config; from nfcore.hooks.manager import PluginManager;"
        "_add_plugin_commands(); load_config(Path('examples/demo.toml'), PluginManager());"
        "print([name for name in sys.modules if name.partition('.')[0] == 'bcc'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_is_called_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [path for path in files(*SOURCES, suffixes=(".py", ".c", ".h")) if path.stem in vague] == []


def test_every_source_names_its_licence() -> None:
    for path in files(*SOURCES, suffixes=(".py", ".c", ".h", ".sh", ".toml")):
        head = path.read_text(encoding="utf-8").splitlines()[:2]
        assert any("SPDX-License-Identifier: " in line for line in head), path
        if path.is_relative_to(ROOT / "bpf"):
            assert "GPL-2.0-only" in head[0], path
        elif path.suffix == ".py":
            assert "Apache-2.0" in head[0], path


def folders() -> list[Path]:
    fixed = (
        "",
        "nfcore",
        "nfcore/kernel",
        "nfcore/bench",
        "nfcore/scaffold",
        "plugins",
        "bpf",
        "bpf/lib",
        "bpf/lib/carriers",
        "bpf/balancer",
        "bpf/bench",
        "tests",
    )
    return [
        ROOT / folder for folder in (*fixed, "nfcore/testing", "tests/unit", "tests/kernel", "examples", "demo", "docs")
    ] + [PLUGINS / name for name in plugin_names()]


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_folder_explains_itself(folder: Path) -> None:
    assert (folder / "README.md").is_file()
    assert (folder / "README.md").read_text(encoding="utf-8").strip()
