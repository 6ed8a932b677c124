# SPDX-License-Identifier: Apache-2.0
"""Programs found compiled: the same code, only while nothing that it was made from has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nfcore.errors import HostError
from nfcore.kernel import CompileError, Map, MapSpec, MapType, Program, VerifierError, XdpAction, compile_program
from nfcore.kernel.program_cache import Compiled, ProgramCache, cache_key, placeholders, relocate
from tests.paths import PROGRAMS

COUNTS = MapSpec("counts", MapType.ARRAY, np.dtype(np.uint32), np.dtype(np.uint64), 4)
FRAME = bytes(64)
SOURCE = """\
#include <linux/bpf.h>
#include "verdict.h"
int chosen(struct xdp_md *ctx) { return VERDICT; }
"""

Compile = Callable[..., Program]


@pytest.fixture
def counts() -> Iterator[Map]:
    with Map.create(COUNTS) as made:
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> ProgramCache:
    return ProgramCache(tmp_path / "programs")


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """From the call on, the compiler's process finds a bcc that is none."""

    def hide() -> None:
        (tmp_path / "hidden").mkdir()
        (tmp_path / "hidden" / "bcc.py").touch()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))

    return hide


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A source, its header in a folder of its own, and an empty folder that is searched before that one."""
    root = tmp_path / "project"
    for folder in ("source", "before", "include"):
        (root / folder).mkdir(parents=True)
    (root / "source" / "chosen.c").write_text(SOURCE)
    write_verdict(root / "include", XdpAction.DROP)
    return root


def write_verdict(folder: Path, verdict: XdpAction) -> None:
    (folder / "verdict.h").write_text(f"#define VERDICT {verdict.name}\n")
    # What changed as late as the compiler started is not kept.
    time.sleep(0.1)


def verdict_of(project: Path, cache: ProgramCache) -> XdpAction:
    folders = [project / "before", project / "include"]
    source = project / "source" / "chosen.c"
    with compile_program(source, "chosen", defines={}, maps={}, include_dirs=folders, cache=cache) as program:
        return program.test_run(FRAME).verdict


def count_as(index: int, counts: Map, cache: ProgramCache) -> Program:
    return compile_program(
        PROGRAMS / "verdict.c",
        "verdict_prog_with_a_long_name",
        defines={"VERDICT": "XDP_TX", "COUNT_AS": index},
        maps={"counts": counts},
        cache=cache,
    )


def entries(cache: ProgramCache) -> list[Path]:
    return sorted(cache.folder.iterdir()) if cache.folder.exists() else []


def test_second_time_needs_no_compiler(counts: Map, cache: ProgramCache, no_bcc: Callable[[], None]) -> None:
    with count_as(1, counts, cache) as first:
        tag, size, name = first.tag, first.xlated_size, first.name
    no_bcc()
    with count_as(1, counts, cache) as again:
        assert (again.tag, again.xlated_size, again.name) == (tag, size, name)
        assert again.test_run(FRAME).verdict is XdpAction.TX
    assert counts.read_array().tolist() == [0, 1, 0, 0]
    with pytest.raises(HostError, match="cannot import bcc"):
        count_as(2, counts, cache)


def test_maps_are_those_of_this_time(counts: Map, cache: ProgramCache) -> None:
    count_as(1, counts, cache).close()
    with Map.create(COUNTS) as others, count_as(1, others, cache) as program:
        assert others.fd != counts.fd
        program.test_run(FRAME)
        assert others.read_array().tolist() == [0, 1, 0, 0]
    assert counts.read_array().tolist() == [0, 0, 0, 0]
    assert len(entries(cache)) == 1


def test_another_definition_is_another_program(counts: Map, cache: ProgramCache) -> None:
    for index in (0, 3):
        with count_as(index, counts, cache) as program:
            program.test_run(FRAME)
    assert counts.read_array().tolist() == [1, 0, 0, 1]
    assert len(entries(cache)) == 2


def test_a_changed_header_is_seen(project: Path, cache: ProgramCache) -> None:
    assert verdict_of(project, cache) is XdpAction.DROP
    (entry,) = entries(cache)
    before = (project / "include" / "verdict.h").stat()
    write_verdict(project / "include", XdpAction.PASS)
    # Same length and time: only the content tells.
    os.utime(project / "include" / "verdict.h", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verdict_of(project, cache) is XdpAction.PASS
    assert entries(cache) == [entry]
    assert verdict_of(project, cache) is XdpAction.PASS


def test_a_changed_source_is_seen(project: Path, cache: ProgramCache) -> None:
    assert verdict_of(project, cache) is XdpAction.DROP
    (project / "source" / "chosen.c").write_text(SOURCE.replace("return VERDICT", "return XDP_TX"))
    assert verdict_of(project, cache) is XdpAction.TX


def test_a_new_header_that_hides_one_is_seen(project: Path, cache: ProgramCache) -> None:
    assert verdict_of(project, cache) is XdpAction.DROP
    write_verdict(project / "before", XdpAction.PASS)
    assert verdict_of(project, cache) is XdpAction.PASS


def test_a_header_that_is_gone_is_missed(project: Path, cache: ProgramCache) -> None:
    assert verdict_of(project, cache) is XdpAction.DROP
    (project / "include" / "verdict.h").unlink()
    with pytest.raises(CompileError, match=r"'verdict\.h' file not found"):
        verdict_of(project, cache)


def test_what_changed_during_compilation_is_not_kept(project: Path, cache: ProgramCache) -> None:
    source = project / "source" / "chosen.c"
    compiled = Compiled(bytes(16), "GPL", (source,), (), ())
    started = time.time_ns()
    time.sleep(0.1)
    assert cache.keep(cache_key("before"), compiled, time.time_ns())
    source.touch()
    # A time of one's own choosing does not hide the change.
    os.utime(source, (0, 0))
    assert not cache.keep(cache_key("after"), compiled, started)
    assert [path.name for path in entries(cache)] == [cache_key("before")]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_entry_is_compiled_anew(counts: Map, cache: ProgramCache, damage: str) -> None:
    count_as(1, counts, cache).close()
    (entry,) = entries(cache)
    intact = entry.read_bytes()
    middle = len(intact) // 2
    flipped = intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :]
    entry.write_bytes({"flipped": flipped, "cut": intact[:middle], "empty": b""}[damage])
    with count_as(1, counts, cache) as program:
        program.test_run(FRAME)
    assert counts.read_array().tolist() == [0, 1, 0, 0]
    assert entry.read_bytes() == intact


@pytest.mark.parametrize("what", ["folder", "entry"])
def test_what_others_may_write_is_not_used(
    counts: Map, cache: ProgramCache, no_bcc: Callable[[], None], what: str
) -> None:
    count_as(1, counts, cache).close()
    (entry,) = entries(cache)
    {"folder": cache.folder, "entry": entry}[what].chmod(0o722)
    no_bcc()
    with pytest.raises(HostError, match="cannot import bcc"):
        count_as(1, counts, cache)


def test_a_link_is_not_followed(counts: Map, cache: ProgramCache, tmp_path: Path, no_bcc: Callable[[], None]) -> None:
    count_as(1, counts, cache).close()
    (entry,) = entries(cache)
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    no_bcc()
    with pytest.raises(HostError, match="cannot import bcc"):
        count_as(1, counts, cache)


def test_without_a_folder_programs_are_compiled(counts: Map, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with count_as(1, counts, ProgramCache(tmp_path / "file" / "programs")) as program:
        assert program.test_run(FRAME).verdict is XdpAction.TX


def test_a_refused_program_is_explained_each_time(cache: ProgramCache) -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(VerifierError, match="invalid access to packet") as caught:
            compile_program(PROGRAMS / "refused.c", "refused", defines={}, maps={}, cache=cache)
        messages.append(str(caught.value).splitlines()[0])
    assert messages[0] == messages[1]
    assert len(entries(cache)) == 1


def test_the_oldest_go(cache: ProgramCache) -> None:
    compiled = Compiled(bytes(16), "GPL", (), (), ())
    keys = [cache_key(number) for number in range(260)]
    for key in keys:
        assert cache.keep(key, compiled, time.time_ns())
    assert len(entries(cache)) == 256
    assert cache.find(keys[-1]) == compiled


def test_relocation_touches_maps_alone() -> None:
    numbers = placeholders(["b", "a"])
    assert list(numbers) == ["a", "b"]
    load = bytes([0x18, 0x11, 0, 0])
    plain = bytes([0x18, 0x01, 0, 0]) + numbers["a"].to_bytes(4, "little") + bytes(8)
    code = load + numbers["b"].to_bytes(4, "little") + bytes(8) + plain
    patched = relocate(code, {numbers["a"]: 5, numbers["b"]: 6})
    assert patched == load + (6).to_bytes(4, "little") + bytes(8) + plain
    with pytest.raises(KeyError):
        relocate(code, {numbers["a"]: 5})
