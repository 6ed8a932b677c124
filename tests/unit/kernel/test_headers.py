# SPDX-License-Identifier: Apache-2.0
"""The header tree that the compiler gets: built, reused, repaired, chosen by the user."""

import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nfcore.errors import HostError
from nfcore.kernel import headers
from nfcore.kernel.headers import Headers, find_headers

UAPI = ("types.h", "if_ether.h", "if_packet.h")


@pytest.fixture(autouse=True)
def no_choice_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)


def install_for_c(prefix: Path) -> Path:
    """A linux-libc-dev below ``prefix``."""
    include = prefix / "include"
    for folder in ("linux", "asm-generic", "x86_64-linux-gnu/asm"):
        (include / folder).mkdir(parents=True)
    for name in UAPI:
        (include / "linux" / name).touch()
    return include


def install_kernel_package(prefix: Path, version: str, *, split: bool) -> Path:
    """A linux-headers package below ``prefix``, in one tree or in Debian's two."""
    base = prefix / "src" / f"linux-headers-{version}"
    common = Path(f"{base}-common") if split else base
    flavour = Path(f"{base}-amd64") if split else base
    for folder in ("include/uapi/linux", "include/uapi/asm-generic", "arch/x86/include/uapi/asm"):
        (common / folder).mkdir(parents=True)
    for name in UAPI:
        (common / "include/uapi/linux" / name).touch()
    for folder in ("arch/x86/include/generated/uapi/asm", "include/generated/uapi/linux"):
        (flavour / folder).mkdir(parents=True)
    return common


def test_this_machine_has_headers(tmp_path: Path) -> None:
    found = find_headers(tmp_path)
    assert found.origin.startswith("stub tree over ")
    assert found.path.parent == tmp_path
    assert (found.path / "include/linux/kconfig.h").is_file()
    assert (found.path / "include/uapi/linux/if_ether.h").is_file()
    architecture = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]
    assert (found.path / f"arch/{architecture}/include/uapi/asm/types.h").exists()


def test_second_call_reuses_the_tree(tmp_path: Path) -> None:
    first = find_headers(tmp_path)
    before = (first.path / "include/linux/types.h").stat()
    assert find_headers(tmp_path) == first
    after = (first.path / "include/linux/types.h").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [first.path.name]


@pytest.mark.parametrize("damage", ["changed", "missing", "relinked"])
def test_damaged_tree_is_rebuilt(tmp_path: Path, damage: str) -> None:
    tree = find_headers(tmp_path).path
    intact = (tree / "include/linux/types.h").read_text()
    link = tree / "include/uapi/linux"
    target = link.readlink()
    if damage == "changed":
        (tree / "include/linux/types.h").write_text("typedef int u8;\n")
    elif damage == "missing":
        (tree / "include/linux/types.h").unlink()
    else:
        link.unlink()
        link.symlink_to(tmp_path)
    assert find_headers(tmp_path).path == tree
    assert (tree / "include/linux/types.h").read_text() == intact
    assert link.readlink() == target


def test_other_text_is_another_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = find_headers(tmp_path).path
    shutil.copytree(headers._STUBS, tmp_path / "stubs")
    (tmp_path / "stubs/string.h").write_text("/* a later version of the stub */\n")
    monkeypatch.setattr(headers, "_STUBS", tmp_path / "stubs")
    assert find_headers(tmp_path).path != old
    assert old.is_dir()


def test_many_at_once_agree(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from nfcore.kernel.headers import find_headers;"
        "[print(find_headers(Path(sys.argv[1]) / str(i)).path) for i in range(20)]"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert outputs[0].count("\n") == 20
    assert len(set(outputs)) == 1
    leftovers = [path for path in tmp_path.rglob("*") if path.name.startswith(".headers-")]
    assert leftovers == []


def test_threads_agree(tmp_path: Path) -> None:
    found: list[Headers] = []
    threads = [threading.Thread(target=lambda: found.append(find_headers(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_users_choice_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = find_headers(tmp_path / "cache").path
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tree))
    assert find_headers(tmp_path / "unused") == Headers(tree, "BCC_KERNEL_SOURCE")
    assert not (tmp_path / "unused").exists()


def test_users_wrong_choice_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    with pytest.raises(HostError, match=rf"BCC_KERNEL_SOURCE names {tmp_path}.*kconfig\.h"):
        find_headers(tmp_path)


def test_headers_for_c_programs_come_before_kernel_packages(tmp_path: Path) -> None:
    install_kernel_package(tmp_path, "6.1.0-1", split=True)
    include = install_for_c(tmp_path)
    found = list(headers._installed_headers(tmp_path, "x86", "x86_64-linux-gnu"))
    assert len(found) == 2
    assert found[0].origin == f"{include} (linux-libc-dev)"
    assert found[0].links["arch/x86/include/uapi/asm"] == include / "x86_64-linux-gnu/asm"
    assert "linux-headers-6.1.0-1-common" in found[1].origin


@pytest.mark.parametrize("split", [True, False])
def test_kernel_package_serves_alone(tmp_path: Path, split: bool) -> None:
    common = install_kernel_package(tmp_path, "6.1.0-1", split=split)
    (found,) = headers._installed_headers(tmp_path, "x86", "x86_64-linux-gnu")
    assert found.links["include/uapi/linux"] == common / "include/uapi/linux"
    for folder in ("arch/x86/include/generated/uapi/asm", "include/generated/uapi/linux"):
        assert found.links[folder].is_dir()
        assert ("amd64" in str(found.links[folder])) == split


def test_half_installed_package_is_passed_over(tmp_path: Path) -> None:
    common = install_kernel_package(tmp_path, "6.1.0-1", split=False)
    (common / "include/uapi/linux/types.h").unlink()
    assert list(headers._installed_headers(tmp_path, "x86", "x86_64-linux-gnu")) == []


def test_nothing_installed_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> list[object]:
        return []

    monkeypatch.setattr(headers, "_installed_headers", nothing)
    with pytest.raises(HostError, match="install linux-libc-dev"):
        find_headers(tmp_path)


def test_unusable_cache_folder_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(HostError, match=str(occupied)):
        find_headers(occupied)


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert headers.default_cache_dir() == Path("/var/cache/nfcore")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert headers.default_cache_dir() == tmp_path / "nfcore"


def test_package_imports_without_bcc() -> None:
    script = (
        "import sys; sys.modules['bcc'] = None; import nfcore.kernel; "
        "print(any(name.startswith('bcc.') for name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
