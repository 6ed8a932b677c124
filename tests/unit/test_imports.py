# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom, what files are called, and what each of them must have."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

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
    assert "nfcore.engine.removal" in arrows()["nfcore.engine.engine"]


# Rooms of nfcore, and which others each may import. Arrows point down only.
GROUND = {"errors", "refusals", "text", "logs", "version", "folders"}
ROOMS = {
    "errors": {"refusals"},
    "refusals": set(),
    "text": set(),
    "version": set(),
    "folders": set(),
    "logs": {"errors", "refusals", "text"},
    "kernel": GROUND,
    "api": {"kernel", *GROUND},
    "hooks": {"api", *GROUND},
    "config": {"hooks", "api", *GROUND},
    "devices": {"hooks", "api", *GROUND},
    "engine": {"devices", "hooks", "api", *GROUND},
    "control": {"api", *GROUND},
    "client": {"control", *GROUND},
    "daemon": {"control", "engine", "devices", "config", "hooks", "api", "kernel", *GROUND},
    "scaffold": GROUND,
    "testing": {"daemon", "engine", "devices", "config", "hooks", "api", "kernel", *GROUND},
    "bench": {"daemon", "control", "engine", "devices", "config", "hooks", "api", "kernel", *GROUND},
    "cli": {"bench", "testing", "scaffold", "daemon", "control", "engine", "devices", "config", "hooks", "api"}
    | {"kernel", *GROUND},
}
FOR_PLUGINS = {"api", "kernel", "errors", "refusals", "text", "folders"}
FOR_THEIR_COMMANDS = {"client", "control.client", "cli.options", "cli.stdio", "cli.tables"}
FOR_THEIR_BENCHMARK = {"bench"}


def room_of(module: str) -> str:
    """The room of a module of nfcore by its dotted name; `nfcore` itself is the ground floor's."""
    return module.split(".")[1] if "." in module else "version"


def product_modules() -> dict[str, Path]:
    """Dotted name → file, of nfcore and its plugins; templates are not code yet."""
    found = {}
    for path in files("nfcore", "plugins"):
        if "templates" not in path.parts:
            name = [*module_of(path), *([] if path.stem == "__init__" else [path.stem])]
            found[".".join(name)] = path
    return found


def arrows() -> dict[str, set[str]]:
    """Module → the modules of nfcore and its plugins that it imports, wherever in the file."""
    modules = product_modules()
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {each if each in modules else each.rpartition(".")[0] for each in imports(path)}
        found[name] = {target for target in targets if target in modules and target != name}
    return found


def test_rooms_import_downwards_only() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in arrows().items()
        if not within(module, "nfcore.plugins")
        for target in targets
        if room_of(target) != room_of(module) and room_of(target) not in ROOMS[room_of(module)]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter(arrows()).prepare()  # CycleError names the files


def test_plugins_import_what_is_for_them() -> None:
    for module, targets in arrows().items():
        if not within(module, "nfcore.plugins"):
            continue
        plugin = ".".join(module.split(".")[:3])
        for target in targets:
            if within(target, plugin):
                continue
            inner = target.removeprefix("nfcore.")
            allowed = room_of(target) in FOR_PLUGINS or inner in FOR_THEIR_COMMANDS
            allowed |= room_of(target) in FOR_THEIR_BENCHMARK and module.endswith("benchmark")
            assert allowed, f"{module} imports {target}"


def test_bcc_stands_behind_one_seam() -> None:
    importers = [path for path in files("nfcore", "plugins", "demo") if any(within(n, "bcc") for n in imports(path))]
    assert importers == [BCC_SEAM]


def test_help_and_check_do_not_load_bcc() -> None:
    script = (
        "import sys; from pathlib import Path; from nfcore.hooks.manager import load_installed; import nfcore.cli.main;"
        "from nfcore.config.loader import load_config; from nfcore.hooks.manager import PluginManager;"
        "load_installed(); load_config(Path('examples/demo.toml'), PluginManager());"
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
    """Those that hold files of their own that a reader may look for."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = {Path(name).parent for name in tracked.splitlines() if name.endswith((".py", ".c", ".h"))}
    tops = ("nfcore", "plugins", "bpf", "demo")
    mine = {folder for folder in code if folder.parts and folder.parts[0] in tops and "templates" not in folder.parts}
    tests = {Path("tests"), *(Path("tests") / tier for tier in ("unit", "kernel", "guest"))}
    return [ROOT / folder for folder in sorted(mine | tests | {Path("examples"), Path("docs"), Path("plugins")})]


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_folder_explains_itself(folder: Path) -> None:
    assert (folder / "README.md").is_file()
    assert (folder / "README.md").read_text(encoding="utf-8").strip()
