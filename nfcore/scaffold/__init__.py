# SPDX-License-Identifier: Apache-2.0
"""`nfcore new-plugin`: writes a distribution that works and passes its own tests, for its author to change.

The templates are the files in ``templates/``: those of ``every`` are for every kind, the others for one kind. They have
placeholders for the plugin's names.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from ..errors import ConfigError, HostError, Problem
from ..refusals import explain
from ..version import __version__

GROUP = "nfcore.plugins"
LONGEST_NAME = 32
CORE_TABLES = ("nf", "interfaces", "marking", "offload")
RESERVED_NAMES = ("nfcore", "none", "null")
"""Names that the core itself uses: in metrics, in a list of backends, and while tracing."""
_NOT_TEMPLATES = ("__pycache__",)


class Kind(StrEnum):
    """What kind of plugin to write."""

    BACKEND = "backend"
    STRATEGY = "strategy"
    NF = "nf"


_DESCRIPTIONS = {
    Kind.BACKEND: "An offload backend for nfcore: rules for a NIC",
    Kind.STRATEGY: "A marking strategy for nfcore: what a mark stands for",
    Kind.NF: "A network function for nfcore",
}


@dataclass(frozen=True)
class Skeleton:
    """The distribution of a plugin, before it is written."""

    name: str
    """Name of the plugin and of its table in the TOML: a Python identifier in lower case."""
    kind: Kind

    @property
    def distribution(self) -> str:
        """Name of the distribution for pip, and of its folder."""
        return f"nfcore-{self.name.replace('_', '-')}"

    @property
    def module(self) -> str:
        """Name for import; the prefix keeps it from hiding another module."""
        return f"nfcore_{self.name}"

    def render(self) -> dict[PurePosixPath, str]:
        """Give path in the distribution's folder → text of the file, for all files."""
        root = files(__package__) / "templates"
        rendered: dict[PurePosixPath, str] = {}
        for part in ("every", self.kind):
            for path, text in _texts(root / part, PurePosixPath()):
                rendered[PurePosixPath(self._replace(str(path)))] = self._replace(text)
        return dict(sorted(rendered.items()))

    def _replace(self, text: str) -> str:
        values = {
            "my_name": self.name,
            "my-name": self.name.replace("_", "-"),
            "MyName": "".join(part.capitalize() for part in self.name.split("_")),
            "my_description": _DESCRIPTIONS[self.kind],
            # The program of an NF includes headers of nfcore, which are GPL-2.0-only.
            "my_licence": "Apache-2.0 AND GPL-2.0-only" if self.kind is Kind.NF else "Apache-2.0",
            "my_nfcore": __version__,
        }
        return re.sub("|".join(values), lambda placeholder: values[placeholder[0]], text)


def _texts(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for entry in folder.iterdir():
        if entry.name in _NOT_TEMPLATES:
            continue
        if entry.is_dir():
            yield from _texts(entry, path / entry.name)
        else:
            yield path / entry.name, entry.read_text(encoding="utf-8")


def make_skeleton(name: str, kind: Kind, *, force: bool = False) -> Skeleton:
    """Check the name; ConfigError says why no plugin can have it.

    With `force` it may be the name of an installed plugin, if its distribution has the same name as the new one.
    """
    normal = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", normal) or len(normal) > LONGEST_NAME:
        message = f"{name!r} should be at most {LONGEST_NAME} lower-case letters, digits and single '_' or '-' "
        raise _refusal("NAME", message + "between them, beginning with a letter, such as 'acme_nic'")
    if normal in CORE_TABLES:
        raise _refusal("NAME", f"{name!r} is a table of the core in every TOML: choose another, such as 'my_{normal}'")
    if normal in RESERVED_NAMES:
        raise _refusal("NAME", f"{name!r} is reserved for the core: choose another, such as 'my_{normal}'")
    skeleton = Skeleton(normal, kind)
    for point in entry_points(group=GROUP, name=normal):
        owner = point.dist.name if point.dist is not None else "?"
        if not (force and owner == skeleton.distribution):
            raise _refusal("NAME", f"{name!r} is an installed plugin, of {owner}; choose another name")
    return skeleton


def write_skeleton(skeleton: Skeleton, folder: Path, *, force: bool = False) -> list[Path]:
    """Write all files of the distribution into `folder`, or none; give their paths.

    ConfigError when `folder` is not empty; with `force`, files of the same names are replaced and others stay.
    HostError when the files cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    texts = skeleton.render()
    _check_folder(folder, texts, force=force)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            for path, text in texts.items():
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                (new / path).write_text(text, encoding="utf-8")
            if folder.exists() and any(folder.iterdir()):
                _replace_files(new, folder, list(texts), Path(temporary))
            else:
                new.replace(folder)
    except OSError as error:
        raise HostError(f"{folder} cannot be written: {explain(error, folder)}") from None
    return [folder / path for path in texts]


def _check_folder(folder: Path, texts: Mapping[PurePosixPath, str], *, force: bool) -> None:
    if not folder.parent.is_dir():
        raise _refusal("--into", f"{folder.parent} is no folder: make it first")
    if folder.exists() and not folder.is_dir():
        raise _refusal("--into", f"{folder} is a file; should be a new or an empty folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise _refusal("--into", f"{folder} is not empty; --force replaces the files of the same names")
    for path in texts:
        in_the_way = [folder / part for part in path.parents if (folder / part).is_file()]
        in_the_way += [folder / path] if (folder / path).is_dir() else []
        if in_the_way:
            raise _refusal("--into", f"{in_the_way[0]} is in the way of {path}")


def _replace_files(new: Path, folder: Path, paths: list[PurePosixPath], temporary: Path) -> None:
    """Move files from `new` to `folder` one by one; if one fails, undo all. Old files are kept in `temporary`."""
    with ExitStack() as undo:
        for number, path in enumerate(paths):
            target, kept = folder / path, temporary / f"old-{number}"
            for parent in reversed(
                [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
            ):
                parent.mkdir()
                undo.callback(parent.rmdir)
            if target.exists():
                target.replace(kept)
                undo.callback(kept.replace, target)
            (new / path).replace(target)
            if not kept.exists():
                undo.callback(target.unlink)
        undo.pop_all()


def _refusal(what: str, message: str) -> ConfigError:
    return ConfigError(what, [Problem("", message)])
