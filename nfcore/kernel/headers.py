# SPDX-License-Identifier: Apache-2.0
"""Kernel headers for the compiler, without a kernel tree.

bcc needs the source tree of a kernel, but an XDP program includes only the user-space API. So a stub tree in a cache
folder replaces it: the few tiny files of ``stubs/``, and links to the UAPI headers that the distribution installs for
C programs::

    CACHE/headers-DIGEST/
        include/linux/kconfig.h, types.h, ...      from stubs/
        include/uapi/linux, asm-generic    ───►    /usr/include/linux, asm-generic
        arch/x86/include/uapi/asm          ───►    /usr/include/x86_64-linux-gnu/asm

The digest covers these files and the links: if either changes, the tree has another name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import HostError, UnsupportedError
from ..folders import make_folder, write_file
from ..refusals import explain

_ARCHITECTURES = {
    # machine: (name in the kernel tree, Debian's triplet, the kernel's own configuration symbol)
    "x86_64": ("x86", "x86_64-linux-gnu", "CONFIG_X86_64"),
    "aarch64": ("arm64", "aarch64-linux-gnu", "CONFIG_ARM64"),
}

_STUBS = Path(__file__).with_name("stubs")
_PLACES = {
    "include/linux/kconfig.h": "kconfig.h",
    "include/linux/types.h": "types.h",
    "include/linux/socket.h": "linux_socket.h",
    "include/linux/log2.h": "empty.h",
    "include/linux/compiler.h": "empty.h",
    "include/linux/compiler_types.h": "empty.h",
    "include/stddef.h": "stddef.h",
    "include/stdbool.h": "stdbool.h",
    "include/stdint.h": "stdint.h",
    "include/string.h": "string.h",
    "include/sys/socket.h": "sys_socket.h",
    "arch/ARCHITECTURE/include/asm/page.h": "page.h",
}
"""Place in the tree → file in ``stubs/``."""


@dataclass(frozen=True)
class Headers:
    """A folder that the compiler accepts as a kernel's source tree."""

    path: Path
    """The folder."""
    origin: str
    """Where the headers come from, as text for a user."""


@dataclass(frozen=True)
class _Installed:
    """User-space API headers found on this machine: place in the tree → folder to link."""

    links: Mapping[str, Path]
    origin: str


def find_headers(cache_dir: Path | None = None) -> Headers:
    """Find headers to compile with; build the stub tree in ``cache_dir`` if it does not exist.

    The environment variable BCC_KERNEL_SOURCE comes first. ``cache_dir`` defaults to :func:`default_cache_dir`.
    Raises HostError naming the package to install when nothing usable is found.
    """
    chosen = os.environ.get("BCC_KERNEL_SOURCE")
    if chosen:
        return _from_environment(Path(chosen))
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise UnsupportedError(f"compiling on {platform.machine()}", " or ".join(_ARCHITECTURES))
    for installed in _installed_headers(Path("/usr"), *architecture[:2]):
        files = _stub_files(architecture[0], architecture[2])
        tree = _build(cache_dir or default_cache_dir(), files, installed.links)
        return Headers(tree, f"stub tree over {installed.origin}")
    raise HostError("no kernel headers found: install linux-libc-dev (Debian, Ubuntu) or kernel-headers (Fedora)")


def default_cache_dir() -> Path:
    """The folder of NFCORE_CACHE_DIR, else of CACHE_DIRECTORY, which systemd sets for a unit with CacheDirectory=.

    Without either ``/var/cache/nfcore`` for root, else ``nfcore`` in XDG_CACHE_HOME or ``~/.cache``.
    """
    chosen = os.environ.get("NFCORE_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if chosen:
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/nfcore")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nfcore"


def _from_environment(path: Path) -> Headers:
    if not (path / "include/linux/kconfig.h").is_file():
        raise HostError(
            f"BCC_KERNEL_SOURCE names {path}, which has no include/linux/kconfig.h: "
            "let it name a kernel source tree, or unset it"
        )
    return Headers(path.resolve(), "BCC_KERNEL_SOURCE")


def _installed_headers(prefix: Path, architecture: str, triplet: str) -> Iterator[_Installed]:
    """Yield what is installed below ``prefix``, best first: headers for C programs, then kernel packages."""
    include = prefix / "include"
    for assembly in (include / triplet / "asm", include / "asm"):
        links = {
            "include/uapi/linux": include / "linux",
            "include/uapi/asm-generic": include / "asm-generic",
            f"arch/{architecture}/include/uapi/asm": assembly,
        }
        if _usable(links):
            yield _Installed(links, f"{include} (linux-libc-dev)")
    trees = [*(prefix / "src").glob("linux-headers-*"), *(prefix / "src/kernels").glob("*")]
    for tree in sorted(trees, key=lambda tree: tree.stat().st_mtime, reverse=True):
        links = {
            "include/uapi/linux": tree / "include/uapi/linux",
            "include/uapi/asm-generic": tree / "include/uapi/asm-generic",
            f"arch/{architecture}/include/uapi/asm": tree / f"arch/{architecture}/include/uapi/asm",
        }
        if not _usable(links):
            continue
        generated = _generated(tree, trees, architecture)
        if generated:
            yield _Installed({**links, **generated}, f"{tree} (a kernel headers package)")


def _generated(tree: Path, trees: list[Path], architecture: str) -> dict[str, Path]:
    """Links to the generated headers of ``tree``; a split package keeps them in the tree of a kernel flavour."""
    version = tree.name.removesuffix("common")
    folders = (f"arch/{architecture}/include/generated/uapi/asm", "include/generated/uapi/linux")
    for candidate in (tree, *(other for other in trees if other.name.startswith(version))):
        if all((candidate / folder).is_dir() for folder in folders):
            return {folder: candidate / folder for folder in folders}
    return {}


def _usable(links: Mapping[str, Path]) -> bool:
    return all(target.is_dir() for target in links.values()) and all(
        (links["include/uapi/linux"] / name).is_file() for name in ("types.h", "if_ether.h", "if_packet.h")
    )


def _stub_files(architecture: str, symbol: str) -> dict[str, str]:
    return {
        place.replace("ARCHITECTURE", architecture): (_STUBS / name).read_text().replace("CONFIG_ARCHITECTURE", symbol)
        for place, name in _PLACES.items()
    }


def _build(cache_dir: Path, files: Mapping[str, str], links: Mapping[str, Path]) -> Path:
    """Return the tree of ``files`` and ``links``: the cached one if it is intact, else a new one."""
    digest = hashlib.sha256(repr((sorted(files.items()), sorted(links.items()))).encode()).hexdigest()
    tree = cache_dir / f"headers-{digest[:12]}"
    if _intact(tree, files, links):
        return tree
    try:
        make_folder(cache_dir)
        with _locked(cache_dir):
            if not _intact(tree, files, links):
                _replace(cache_dir, tree, files, links)
    except OSError as error:
        advice = "; or let NFCORE_CACHE_DIR name another folder"
        reason = f"{explain(error, cache_dir)}{advice}"
        raise HostError(f"cannot build the header tree in {cache_dir}: {reason}") from error
    return tree


@contextmanager
def _locked(cache_dir: Path) -> Iterator[None]:
    """Hold the lock of the folder: one thread of all processes builds at a time."""
    with (cache_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(cache_dir: Path, tree: Path, files: Mapping[str, str], links: Mapping[str, Path]) -> None:
    """Build the tree in a temporary folder and rename it, so that a reader finds the whole tree or none."""
    temporary = Path(tempfile.mkdtemp(prefix=".headers-", dir=cache_dir))
    try:
        _write(temporary / "tree", files, links)
        if tree.exists():
            tree.rename(temporary / "damaged")
        (temporary / "tree").rename(tree)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(tree: Path, files: Mapping[str, str], links: Mapping[str, Path]) -> None:
    for name, text in files.items():
        make_folder((tree / name).parent)
        write_file(tree / name, text.encode(), 0o644)
    for name, target in links.items():
        make_folder((tree / name).parent)
        (tree / name).symlink_to(target)


def _intact(tree: Path, files: Mapping[str, str], links: Mapping[str, Path]) -> bool:
    try:
        return all((tree / name).read_text() == text for name, text in files.items()) and all(
            (tree / name).readlink() == target for name, target in links.items()
        )
    except OSError:
        return False
