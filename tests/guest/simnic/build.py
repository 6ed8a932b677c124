# SPDX-License-Identifier: Apache-2.0
"""The kernel module simnic, built on the host for the guest's kernel.

::

    CACHE/guest/
        headers-RELEASE/              Debian's headers and build tools for that kernel, unpacked
        simnic-RELEASE-DIGEST.ko      the module, of these sources
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from nfcore.errors import HostError
from tests.guest.kernel import PREPARE, GuestKernel, cache_dir, cached_kernel, locked, run_tool, workplace

_FOLDER = Path(__file__).parent
_SOURCES = sorted(path for path in _FOLDER.iterdir() if path.name == "Kbuild" or path.suffix in (".c", ".h"))
_FLAVOUR = "-cloud-amd64"
# The module's own type information would need pahole, and nothing here reads it.
_OPTIONS = ("CONFIG_DEBUG_INFO_BTF_MODULES=",)


def module_path(release: str) -> Path:
    """Where the module for the kernel ``release`` is once it is built, for host and guest alike."""
    digest = hashlib.sha256(" ".join(_OPTIONS).encode())
    for source in _SOURCES:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return cache_dir() / f"simnic-{release}-{digest.hexdigest()[:12]}.ko"


@cache
def missing_for_simnic() -> str:
    """Why there is no module for the cached kernel, in words; empty when there is one. Built if need be.

    Nothing is downloaded here.
    """
    kernel = cached_kernel()
    if kernel is None:
        return f"a kernel ({PREPARE})"
    if not module_path(kernel.release).is_file() and not _headers(kernel).is_dir():
        return f"the headers of Linux {kernel.release} ({PREPARE})"
    try:
        build_module(kernel)
    except HostError as error:
        return f"its kernel module, which cannot be built: {error}"
    return ""


def build_module(kernel: GuestKernel) -> Path:
    """Build the module unless it is there; its file. Gets the headers if the cache lacks them.

    Raises HostError with the words of apt, make or the compiler.
    """
    with locked():
        module = module_path(kernel.release)
        if module.is_file():
            return module
        if not _headers(kernel).is_dir():
            _fetch_headers(kernel)
        with workplace() as folder:
            for source in _SOURCES:
                (folder / source.name).write_bytes(source.read_bytes())
            tree = _headers(kernel) / "usr" / "src" / f"linux-headers-{kernel.release}"
            run_tool("make", "-s", "-C", str(tree), f"M={folder}", *_OPTIONS, "modules")
            (folder / "simnic.ko").rename(module)
    return module


def _headers(kernel: GuestKernel) -> Path:
    return cache_dir() / f"headers-{kernel.release}"


def _fetch_headers(kernel: GuestKernel) -> None:
    version = kernel.release.removesuffix(_FLAVOUR)
    packages = (f"linux-headers-{kernel.release}", f"linux-headers-{version}-common", f"linux-kbuild-{version}")
    with workplace() as folder:
        try:
            run_tool("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages, cwd=folder)
        except HostError as error:
            raise HostError(f"{error}; if they have been superseded: {PREPARE} --newest") from None
        for archive in folder.glob("*.deb"):
            run_tool("dpkg", "-x", str(archive), str(folder / "unpacked"))
        # The package names the folder that it would be installed in.
        makefile = folder / "unpacked" / "usr" / "src" / packages[0] / "Makefile"
        makefile.write_text(f"include {_headers(kernel)}/usr/src/{packages[1]}/Makefile\n", encoding="utf-8")
        (folder / "unpacked").rename(_headers(kernel))
