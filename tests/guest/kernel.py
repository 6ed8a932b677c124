# SPDX-License-Identifier: Apache-2.0
"""The guest's kernel and its process 1, in a cache folder outside the checkout.

The kernel is Debian's for clouds, downloaded and unpacked and never installed: installing one would change
how the host boots::

    CACHE/guest/
        linux-RELEASE/      vmlinuz, lib/modules/RELEASE with depmod's indices, overlay.ko
        init-DIGEST         init.c of this folder, linked statically
        kvm                 whether KVM works here: see machine.py
        headers-*, simnic-* see simnic/build.py
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nfcore.errors import HostError
from nfcore.kernel.headers import default_cache_dir

PREPARE = "scripts/guest.sh prepare"
"""What gets everything that the guest needs."""
_INIT_SOURCE = Path(__file__).with_name("init.c")
_COMPILER = ("gcc", "-static", "-Os", "-Wall", "-Wextra")
_PACKAGE = re.compile(r"linux-image-(6\.\d+\.\d+\S*-cloud-amd64)")
"""Packages with a kernel. One that is called after a series alone, such as 6.12, only points to another."""


@dataclass(frozen=True)
class GuestKernel:
    """An unpacked kernel."""

    folder: Path

    @property
    def release(self) -> str:
        """What ``uname -r`` says in the guest."""
        return self.folder.name.removeprefix("linux-")

    @property
    def image(self) -> Path:
        """The compressed kernel, for QEMU's ``-kernel``."""
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The guest's ``/lib/modules/RELEASE``."""
        return self.folder / "lib" / "modules" / self.release

    @property
    def overlay(self) -> Path:
        """The one module that is needed before there is a modprobe to load it."""
        return self.folder / "overlay.ko"


def cache_dir() -> Path:
    """Where all of this is kept."""
    return default_cache_dir() / "guest"


def cached_kernel() -> GuestKernel | None:
    """The newest kernel in the cache, None when there is none."""
    folders = [folder for folder in cache_dir().glob("linux-6.*") if folder.is_dir()]
    return GuestKernel(max(folders, key=lambda folder: _version(folder.name))) if folders else None


def fetch_kernel() -> GuestKernel:
    """Download and unpack the newest kernel that apt knows, unless the cache has it.

    Raises HostError with what apt said: no network, no such package.
    """
    with locked():
        # Superseded kernels vanish from the archive, so lists that are too old name one that is gone.
        try:
            package = newest_package()
            return _fetch(package)
        except HostError:
            run_tool("apt-get", "-q", "update")
            return _fetch(newest_package())


def newest_package() -> str:
    """The package with the newest kernel, going by its version. Raises HostError if apt knows none."""
    listing = run_tool("apt-cache", "search", "--names-only", r"^linux-image-6\..*-cloud-amd64$")
    packages = [line.split(" ")[0] for line in listing.splitlines()]
    packages = [package for package in packages if _PACKAGE.fullmatch(package)]
    if not packages:
        raise HostError(
            "apt knows no package linux-image-6.*-cloud-amd64: the guest's kernel is Debian 12's, for x86-64"
        )
    return max(packages, key=_version)


def build_init() -> Path:
    """Process 1 of the guest, compiled if this text of init.c was not before. Raises HostError."""
    text = _INIT_SOURCE.read_bytes()
    digest = hashlib.sha256(text + " ".join(_COMPILER).encode()).hexdigest()
    program = cache_dir() / f"init-{digest[:12]}"
    if not program.is_file():
        with workplace() as folder:
            run_tool(*_COMPILER, "-o", str(folder / "init"), str(_INIT_SOURCE))
            (folder / "init").rename(program)
    return program


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _fetch(package: str) -> GuestKernel:
    release = package.removeprefix("linux-image-")
    kernel = GuestKernel(cache_dir() / f"linux-{release}")
    if kernel.folder.is_dir():
        return kernel
    with workplace() as folder:
        # apt's own user has no business in this folder.
        run_tool("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
        (archive,) = folder.glob("*.deb")
        run_tool("dpkg", "-x", str(archive), str(folder / "package"))
        _assemble(folder / "package", GuestKernel(folder / f"linux-{release}"))
        (folder / f"linux-{release}").rename(kernel.folder)
    return kernel


def _assemble(package: Path, kernel: GuestKernel) -> None:
    """Make the finished folder out of a package's files."""
    kernel.modules.parent.mkdir(parents=True)
    (package / "boot" / f"vmlinuz-{kernel.release}").rename(kernel.image)
    (package / "lib" / "modules" / kernel.release).rename(kernel.modules)
    run_tool("depmod", "-b", str(kernel.folder), kernel.release)
    overlay = kernel.modules / "kernel" / "fs" / "overlayfs" / "overlay.ko.xz"
    kernel.overlay.write_bytes(lzma.decompress(overlay.read_bytes()))


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder on the cache's file system, removed afterwards: what is finished is renamed out of it."""
    cache_dir().mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".work-", dir=cache_dir()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked() -> Iterator[None]:
    """Only one process at a time changes the cache."""
    cache_dir().mkdir(mode=0o755, parents=True, exist_ok=True)
    with (cache_dir() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_tool(*command: str, cwd: Path | None = None) -> str:
    """What ``command`` printed. Raises HostError with the end of what it complained about."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed: run {PREPARE}") from None
    if done.returncode:
        raise HostError(f"{_shown(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)
