# SPDX-License-Identifier: Apache-2.0
"""Programs compiled, refused, run on test packets, pinned and found again."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nfcore.errors import HostError
from nfcore.kernel import (
    CompileError,
    Map,
    MapSpec,
    MapType,
    Program,
    VerifierError,
    XdpAction,
    compile_program,
    ensure_bpffs,
    find_headers,
    program_map,
)
from tests.descriptors import open_files
from tests.paths import PROGRAMS

U32, U64 = np.dtype(np.uint32), np.dtype(np.uint64)


@pytest.fixture
def counts() -> Iterator[Map]:
    with Map.create(MapSpec("counts", MapType.ARRAY, U32, U64, 4)) as made:
        yield made


@pytest.fixture
def meta(counts: Map) -> Iterator[Program]:
    with compile_program(PROGRAMS / "meta.c", "meta_prog", defines={"ADD": 100}, maps={"counts": counts}) as program:
        yield program


def frame(verdict: XdpAction, length: int = 64) -> bytes:
    return bytes([verdict]) + bytes(i % 256 for i in range(1, length))


def verdict_program(counts: Map, verdict: XdpAction, count_as: int = 0) -> Program:
    defines = {"VERDICT": verdict.name, "COUNT_AS": count_as}
    return compile_program(
        PROGRAMS / "verdict.c", "verdict_prog_with_a_long_name", defines=defines, maps={"counts": counts}
    )


def test_the_maps_of_a_program_are_found_by_name_and_shape(counts: Map, meta: Program) -> None:
    assert meta.map_ids() == [counts.id]
    counts.update(2, 77)
    with Program.from_id(meta.id) as foreign, program_map(foreign, counts.spec) as found:  # type: ignore[union-attr]
        assert (found.id, found.lookup(2)) == (counts.id, 77)
    assert program_map(meta, MapSpec("counts", MapType.ARRAY, U32, U64, 5)) is None
    assert program_map(meta, MapSpec("other", MapType.ARRAY, U32, U64, 4)) is None


# -- compiling --------------------------------------------------------------------------------------


def test_program_knows_itself(counts: Map, meta: Program) -> None:
    assert meta.name == "meta_prog"
    assert meta.id > 0
    assert len(bytes.fromhex(meta.tag)) == 8
    assert meta.xlated_size > 0
    assert meta.xlated_size % 8 == 0
    with verdict_program(counts, XdpAction.DROP) as program:
        assert program.name == "verdict_prog_wi"
        assert program.tag != meta.tag
        assert program.id != meta.id


def test_maps_are_those_given(counts: Map, meta: Program) -> None:
    for _ in range(3):
        meta.test_run(frame(XdpAction.PASS))
    assert counts.read_array().tolist() == [3, 0, 0, 0]


def test_compiling_leaves_the_process_alone(counts: Map, capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path.cwd()
    before = open_files()
    with pytest.raises(CompileError):
        compile_program(PROGRAMS / "broken.c", "broken", defines={}, maps={})
    with pytest.raises(VerifierError):
        compile_program(PROGRAMS / "refused.c", "refused", defines={}, maps={})
    verdict_program(counts, XdpAction.DROP).close()
    assert Path.cwd() == folder
    assert open_files() <= before
    assert capfd.readouterr() == ("", "")
    assert "libbcc" not in Path("/proc/self/maps").read_text()


def test_program_is_not_inherited(meta: Program) -> None:
    assert not os.get_inheritable(meta.fd)


def test_relative_source_from_anywhere(counts: Map, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "src" / "beside.h").write_text("#define BESIDE 1\n")
    (tmp_path / "include" / "away.h").write_text("#define AWAY 1\n")
    # What bcc would find in the working directory is not part of the program.
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "bpf.h").write_text("#error the working directory was searched\n")
    source = tmp_path / "src" / "relative.c"
    source.write_text(
        '#include <linux/bpf.h>\n#include "beside.h"\n#include "away.h"\n'
        "int relative(struct xdp_md *ctx) { return BESIDE + AWAY; }\n"
    )
    monkeypatch.chdir(tmp_path)
    with compile_program(
        Path("src/relative.c"), "relative", defines={}, maps={}, include_dirs=[Path("include")]
    ) as program:
        assert program.test_run(frame(XdpAction.DROP)).verdict is XdpAction.PASS


def test_headers_can_be_chosen(counts: Map, tmp_path: Path) -> None:
    headers = find_headers(tmp_path)
    defines = {"VERDICT": "XDP_DROP", "COUNT_AS": 0}
    with compile_program(
        PROGRAMS / "verdict.c",
        "verdict_prog_with_a_long_name",
        defines=defines,
        maps={"counts": counts},
        headers=headers,
    ) as program:
        assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.DROP


def test_many_threads_compile(counts: Map) -> None:
    programs: list[Program] = []
    threads = [
        threading.Thread(target=lambda i=i: programs.append(verdict_program(counts, XdpAction.DROP, i)))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for program in programs:
        program.test_run(frame(XdpAction.PASS))
        program.close()
    assert counts.read_array().tolist() == [1, 1, 1, 1]


def test_compile_error_shows_the_first_errors() -> None:
    with pytest.raises(CompileError) as caught:
        compile_program(PROGRAMS / "broken.c", "broken", defines={}, maps={})
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{PROGRAMS}/broken.c does not compile:"
    assert any("broken.c:7:" in line and "incomplete type" in line for line in lines)
    assert any("broken.c:8:" in line and "missing_name" in line for line in lines)
    assert any("broken.c:9:" in line and "undeclared_function" in line for line in lines)
    assert lines[-1] == "... and 1 more"
    assert "another_missing_name" in caught.value.log


def test_verifier_error_shows_the_end_of_the_log() -> None:
    with pytest.raises(VerifierError) as caught:
        compile_program(PROGRAMS / "refused.c", "refused", defines={}, maps={})
    text = str(caught.value)
    assert text.startswith(f"the kernel's verifier refused refused of {PROGRAMS}/refused.c:\n")
    assert "invalid access to packet" in text
    assert len(text.splitlines()) <= 21
    assert "invalid access to packet" in caught.value.log


def test_unknown_function_lists_those_that_there_are(counts: Map) -> None:
    with pytest.raises(HostError, match=r"verdict\.c defines no program other \(it has: verdict_prog_with"):
        compile_program(
            PROGRAMS / "verdict.c",
            "other",
            defines={"VERDICT": 1, "COUNT_AS": 0},
            maps={"counts": counts},
        )


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=f"the BPF source {tmp_path}/none.c does not exist"):
        compile_program(tmp_path / "none.c", "none", defines={}, maps={})


def test_missing_bcc_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A bcc that is not one hides the distribution's from the compiler's process.
    (tmp_path / "bcc.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        HostError, match=r"cannot import bcc .*: they are installed in .*-packages/bcc, for /usr/bin/py"
    ):
        compile_program(PROGRAMS / "broken.c", "broken", defines={}, maps={})


def test_unprivileged_user_is_told(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from nfcore.kernel import *;"
        "from nfcore.errors import HostError; headers = find_headers(Path(sys.argv[1]));"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: compile_program(Path(sys.argv[2]), 'refused', defines={}, maps={}, headers=headers)\n"
        "except HostError as error: print(error)"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[: len(tmp_path.parents) - 2]:
        parent.chmod(0o755)
    source = tmp_path / "refused.c"
    source.write_text("#include <linux/bpf.h>\nint refused(struct xdp_md *ctx) { return 2; }\n")
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(source)], capture_output=True, text=True, check=True
    )
    assert "needs root, or CAP_BPF (creates maps and loads programs)" in result.stdout


# -- test packets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", list(XdpAction))
def test_verdicts(meta: Program, verdict: XdpAction) -> None:
    run = meta.test_run(frame(verdict))
    assert run.verdict is verdict
    assert run.output == frame(verdict)


def test_unknown_verdict_is_as_good_as_aborted(counts: Map) -> None:
    with compile_program(
        PROGRAMS / "verdict.c",
        "verdict_prog_with_a_long_name",
        defines={"VERDICT": 77, "COUNT_AS": 0},
        maps={"counts": counts},
    ) as program:
        assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.ABORTED


def test_actions_print_as_the_kernel_names_them() -> None:
    assert [str(action) for action in XdpAction][-2:] == ["XDP_TX", "XDP_REDIRECT"]
    assert XdpAction.TX.name == f"{XdpAction.TX}" == "XDP_TX"
    assert XdpAction(1) is XdpAction.DROP


@pytest.mark.parametrize("length", [4, 8, 16, 32])
def test_metadata_makes_the_round_trip(meta: Program, length: int) -> None:
    given = (5).to_bytes(4, sys.byteorder) + bytes(range(4, length))
    run = meta.test_run(frame(XdpAction.TX), metadata=given)
    assert run.metadata == (105).to_bytes(4, sys.byteorder) + given[4:]
    assert run.output == frame(XdpAction.TX)


def test_program_may_add_metadata(meta: Program) -> None:
    run = meta.test_run(frame(XdpAction.PASS))
    assert run.metadata == (107).to_bytes(4, sys.byteorder)
    assert run.output == frame(XdpAction.PASS)


def test_program_without_metadata(counts: Map) -> None:
    with verdict_program(counts, XdpAction.PASS) as program:
        run = program.test_run(frame(XdpAction.PASS), metadata=b"kept")
        assert (run.metadata, run.output) == (b"kept", frame(XdpAction.PASS))
        assert program.test_run(frame(XdpAction.PASS)).metadata == b""


def test_frame_may_grow() -> None:
    with compile_program(PROGRAMS / "resize.c", "resize", defines={"HEAD": 40}, maps={}) as program:
        run = program.test_run(frame(XdpAction.PASS, 1500))
        assert run.output == b"\xab" * 40 + frame(XdpAction.PASS, 1500)


def test_repetition_runs_the_program_so_often(counts: Map) -> None:
    with verdict_program(counts, XdpAction.DROP, 2) as program:
        program.test_run(frame(XdpAction.PASS), repeat=1000)
    assert counts.read_array().tolist() == [0, 0, 1000, 0]


def test_interface_and_queue_are_seen() -> None:
    seen = MapSpec("seen", MapType.ARRAY, U32, np.dtype([("ifindex", np.uint32), ("queue", np.uint32)]), 1)
    loopback = socket.if_nametoindex("lo")
    with (
        Map.create(seen) as made,
        compile_program(PROGRAMS / "interface.c", "interface", defines={}, maps={"seen": made}) as program,
    ):
        program.test_run(frame(XdpAction.PASS), ifindex=loopback)
        assert made.lookup(0).item() == (loopback, 0)
        with pytest.raises(HostError, match="is interface 999999 up"):
            program.test_run(frame(XdpAction.PASS), ifindex=999999)


@pytest.mark.parametrize("length", [2, 36, 1])
def test_impossible_metadata_is_refused(meta: Program, length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes of metadata"):
        meta.test_run(frame(XdpAction.PASS), metadata=bytes(length))


def test_impossible_frames_are_refused(meta: Program) -> None:
    with pytest.raises(ValueError, match="a frame of 13 bytes"):
        meta.test_run(bytes(13))
    assert meta.test_run(frame(XdpAction.PASS, 14)).output == frame(XdpAction.PASS, 14)


# -- other map types in programs --------------------------------------------------------------------


def compile_lookups(function: str) -> tuple[Program, dict[str, Map]]:
    inner = MapSpec("inner", MapType.ARRAY, U32, U32, 1)
    maps = {
        "outer": Map.create(MapSpec("outer", MapType.ARRAY_OF_MAPS, U32, U32, 2, inner=inner)),
        "programs": Map.create(MapSpec("programs", MapType.PROG_ARRAY, U32, U32, 4)),
        "devices": Map.create(MapSpec("devices", MapType.DEVMAP, U32, U32, 1)),
    }
    return compile_program(PROGRAMS / "lookups.c", function, defines={}, maps=maps), maps


def test_inner_maps() -> None:
    program, maps = compile_lookups("inner_map")
    assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.ABORTED
    with Map.create(MapSpec("inner", MapType.ARRAY, U32, U32, 1)) as inner:
        inner.update(0, XdpAction.TX)
        maps["outer"].update(1, inner)
    assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.TX


def test_jumps(counts: Map) -> None:
    program, maps = compile_lookups("jump")
    assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.ABORTED
    with verdict_program(counts, XdpAction.TX) as target:
        maps["programs"].update(2, target)
        assert maps["programs"].lookup(2) == target.id
    assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.TX
    assert counts.lookup(0) == 1


def test_redirects() -> None:
    program, maps = compile_lookups("redirect")
    assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.DROP
    maps["devices"].update(0, socket.if_nametoindex("lo"))
    assert program.test_run(frame(XdpAction.PASS)).verdict is XdpAction.REDIRECT


# -- pins and ids -----------------------------------------------------------------------------------


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpffs"
    ensure_bpffs(path)
    yield path
    subprocess.run(["umount", path], check=True)


def test_pinned_program_is_the_same(meta: Program, pins: Path) -> None:
    meta.pin(pins / "meta")
    tag = meta.tag
    meta.close()
    with pytest.raises(ValueError, match="program meta_prog is closed"):
        _ = meta.fd
    with Program.open_pinned(pins / "meta") as again:
        assert (again.id, again.tag, again.name) == (meta.id, tag, "meta_prog")
        assert again.test_run(frame(XdpAction.TX)).verdict is XdpAction.TX


def test_program_by_id(meta: Program) -> None:
    with Program.from_id(meta.id) as again:
        assert again.tag == meta.tag
        assert again.fd != meta.fd
    with pytest.raises(HostError, match="cannot open the program with id 2147483647"):
        Program.from_id(2147483647)


def test_pins_of_the_wrong_kind(counts: Map, meta: Program, pins: Path) -> None:
    counts.pin(pins / "counts")
    meta.pin(pins / "meta")
    with pytest.raises(HostError, match=r"the pin .*/counts: a bpf-map was found where an XDP program"):
        Program.open_pinned(pins / "counts")
    with pytest.raises(HostError, match=r"the pin .*/meta is a bpf-prog, not the map counts"):
        Map.open_pinned(pins / "meta", counts.spec)
