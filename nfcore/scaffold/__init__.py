# SPDX-License-Identifier: Apache-2.0
"""`nfcore new-plugin`: a distribution that works and passes its own tests, for its author to change.

The templates are the files below ``templates/``: ``every`` for every kind, then the kind's own, with words in them
that stand for the plugin's names.
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
from ..version import __version__

GROUP = "nfcore.plugins"
LONGEST_NAME = 32
CORE_TABLES = ("nf", "interfaces", "marking", "offload")
WORDS_OF_THE_CORE = ("nfcore", "none", "null")
"""Whose name a plugin would take in metrics, in a list of backends, and while tracing."""
_NOT_TEMPLATES = ("__pycache__",)


class Kind(StrEnum):
    """What a plugin is."""

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
    """A plugin's distribution before it is written."""

    name: str
    """The plugin's, and its table's in the TOML: a Python identifier in lower case."""
    kind: Kind

    @property
    def distribution(self) -> str:
        """Name for pip, and of the folder."""
        return f"nfcore-{self.name.replace('_', '-')}"

    @property
    def module(self) -> str:
        """Name for import: with a prefix, so that no plugin hides a module of another meaning."""
        return f"nfcore_{self.name}"

    def render(self) -> dict[PurePosixPath, str]:
        """Give the text of each file, by its path in the distribution's folder."""
        root = files(__package__) / "templates"
        found: dict[PurePosixPath, str] = {}
        for part in ("every", self.kind):
            for path, text in _texts(root / part, PurePosixPath()):
                found[PurePosixPath(self._replace(str(path)))] = self._replace(text)
        return dict(sorted(found.items()))

    def _replace(self, text: str) -> str:
        words = {
            "my_name": self.name,
            "my-name": self.name.replace("_", "-"),
            "MyName": "".join(part.capitalize() for part in self.name.split("_")),
            "my_description": _DESCRIPTIONS[self.kind],
            # Its program includes headers of nfcore that are under this licence.
            "my_licence": "Apache-2.0 AND GPL-2.0-only" if self.kind is Kind.NF else "Apache-2.0",
            "my_nfcore": __version__,
        }
        return re.sub("|".join(words), lambda found: words[found[0]], text)


def _texts(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for entry in folder.iterdir():
        if entry.name in _NOT_TEMPLATES:
            continue
        if entry.is_dir():
            yield from _texts(entry, path / entry.name)
        else:
            yield path / entry.name, entry.read_text(encoding="utf-8")


def make_skeleton(name: str, kind: Kind, *, force: bool = False) -> Skeleton:
    """Look at the name; ConfigError says why it cannot be a plugin's.

    With `force` it may be that of an installed plugin whose distribution the skeleton's would replace.
    """
    wanted = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", wanted) or len(wanted) > LONGEST_NAME:
        message = f"{name!r} should be at most {LONGEST_NAME} lower-case letters, digits and single '_' or '-' "
        raise _refusal("NAME", message + "between them, beginning with a letter, such as 'acme_nic'")
    if wanted in CORE_TABLES:
        raise _refusal("NAME", f"{name!r} is a table of the core's in every TOML: take another, such as 'my_{wanted}'")
    if wanted in WORDS_OF_THE_CORE:
        raise _refusal("NAME", f"{name!r} is a word of the core's: take another, such as 'my_{wanted}'")
    skeleton = Skeleton(wanted, kind)
    for point in entry_points(group=GROUP, name=wanted):
        owner = point.dist.name if point.dist is not None else "?"
        if not (force and owner == skeleton.distribution):
            raise _refusal("NAME", f"{name!r} is an installed plugin, of {owner}; choose another name")
    return skeleton


def write_skeleton(skeleton: Skeleton, folder: Path, *, force: bool = False) -> list[Path]:
    """Write the distribution into `folder`, all of it or nothing; the paths of its files.

    ConfigError when there is something already, unless with `force`: its files of these names are replaced then, and
    others stay. HostError when it cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    texts = skeleton.render()
    _refuse_occupied(folder, texts, force=force)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workshop:
            fresh = Path(workshop) / "new"
            for path, text in texts.items():
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).write_text(text, encoding="utf-8")
            if folder.exists() and any(folder.iterdir()):
                _put_over(fresh, folder, list(texts), Path(workshop))
            else:
                fresh.replace(folder)
    except OSError as error:
        raise HostError(f"{folder} cannot be written: {error.strerror}: {error.filename}") from None
    return [folder / path for path in texts]


def _refuse_occupied(folder: Path, texts: Mapping[PurePosixPath, str], *, force: bool) -> None:
    if not folder.parent.is_dir():
        raise _refusal("--into", f"{folder.parent} is no folder: make it first")
    if folder.exists() and not folder.is_dir():
        raise _refusal("--into", f"{folder} is a file; should be a new or an empty folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise _refusal("--into", f"{folder} is not empty; --force writes over the files of the same names")
    for path in texts:
        in_the_way = [folder / part for part in path.parents if (folder / part).is_file()]
        in_the_way += [folder / path] if (folder / path).is_dir() else []
        if in_the_way:
            raise _refusal("--into", f"{in_the_way[0]} is in the way of {path}")


def _put_over(fresh: Path, folder: Path, paths: list[PurePosixPath], workshop: Path) -> None:
    """Move files to their places one by one, and everything back if one cannot be."""
    with ExitStack() as undo:
        for number, path in enumerate(paths):
            target, kept = folder / path, workshop / f"old-{number}"
            for parent in reversed(
                [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
            ):
                parent.mkdir()
                undo.callback(parent.rmdir)
            if target.exists():
                target.replace(kept)
                undo.callback(kept.replace, target)
            (fresh / path).replace(target)
            if not kept.exists():
                undo.callback(target.unlink)
        undo.pop_all()


def _refusal(what: str, message: str) -> ConfigError:
    return ConfigError(what, [Problem("", message)])
