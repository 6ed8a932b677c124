# SPDX-License-Identifier: Apache-2.0
"""Compiled objects by the distribution's libbpf."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nfcore.errors import UnsupportedError
from nfcore.kernel import MapType, ObjectError, ObjectFile, libbpf
from tests.descriptors import open_files
from tests.kernel.katran_accel.objects import FEW_RINGS, compile_object


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_object(tmp_path_factory.mktemp("object"), FEW_RINGS)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_object(tmp_path_factory.mktemp("refused"), FEW_RINGS, "REFUSED")


def test_a_file_tells_its_maps_and_programs_before_anything_is_loaded(made: Path) -> None:
    with ObjectFile.open(made) as opened:
        assert opened.programs == ["balancer_ingress"]
        maps = opened.maps
    assert ".rodata" not in "".join(maps)
    vips = maps["vip_map"]
    assert (vips.type, vips.key_size, vips.value_size, vips.max_entries) == (MapType.HASH, 20, 8, 512)
    inner = maps["lru_mapping"].inner
    assert inner is not None
    assert (inner.type, inner.key_size, inner.value_size) == (MapType.LRU_HASH, 40, 16)


def test_what_is_taken_outlives_the_object(made: Path) -> None:
    before = open_files()
    with ObjectFile.open(made) as opened:
        opened.load("balancer_ingress")
        with (
            opened.take_program("balancer_ingress") as program,
            opened.take_map("vip_map", opened.maps["vip_map"]) as vips,
        ):
            opened.close()
            assert program.full_name == "balancer_ingress"
            assert vips.id in program.map_ids()
            assert program.test_run(bytes(64)).verdict.name == "XDP_PASS"
    assert open_files() == before


def test_maps_without_btf_are_refused_in_libbpfs_words(tmp_path: Path) -> None:
    bare = compile_object(tmp_path, FEW_RINGS, btf=False)
    with pytest.raises(ObjectError, match=f"libbpf cannot open {bare}.*\n(.*\n)*libbpf: .*BTF"):
        ObjectFile.open(bare)


def test_a_cut_file_is_refused(made: Path, tmp_path: Path) -> None:
    content = made.read_bytes()
    cut = tmp_path / "cut.o"
    before = None
    for length in range(0, len(content), 997):
        cut.write_bytes(content[:length])
        with pytest.raises(ObjectError, match=str(cut)):
            ObjectFile.open(cut).close()
        before = before or open_files()
    assert open_files() == before


def test_each_report_is_that_of_its_own_object(made: Path, refused: Path) -> None:
    found: list[str] = []

    def load(path: Path) -> None:
        for _ in range(5):
            with ObjectFile.open(path) as opened:
                try:
                    opened.load("balancer_ingress")
                except ObjectError as error:
                    found.append(str(error))

    threads = [threading.Thread(target=load, args=(path,)) for path in (made, refused, refused)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    for text in found:
        assert text.startswith(f"the kernel's verifier refused balancer_ingress of {refused}:\n")
        assert text.count("END PROG LOAD LOG") == 1


def test_without_libbpf_the_package_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_LIBRARY", "libbpf.so.none")
    libbpf._library.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match=r"libbpf\.so\.none.*apt-get install libbpf1"):
            ObjectFile.open(made)
    finally:
        monkeypatch.undo()
        libbpf._library.cache_clear()


def test_without_capabilities_they_are_named(made: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom nfcore.errors import HostError\n"
        "from nfcore.kernel import ObjectFile\n"
        "opened = ObjectFile.open(Path(sys.argv[1]))\nos.setgid(65534); os.setuid(65534)\n"
        "try: opened.load('balancer_ingress')\nexcept HostError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(made)], capture_output=True, text=True, check=True)
    assert f"{made} cannot be loaded: nfcore needs root, or CAP_BPF" in done.stdout
