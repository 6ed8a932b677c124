# SPDX-License-Identifier: Apache-2.0
"""Input of `nfcore trace`: frames as hex, with the mark that the NIC would set."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.cli.trace import LONGEST_FRAME, SHORTEST_FRAME, TraceInput, parse_line, read_frames
from nfcore.errors import ConfigError

FRAME = bytes(range(60))


@given(st.binary(min_size=SHORTEST_FRAME, max_size=LONGEST_FRAME), st.integers(0, 2**32 - 1))
def test_what_is_written_is_read(frame: bytes, mark: int) -> None:
    assert parse_line(frame.hex(), "here") == TraceInput(frame, 0)
    assert parse_line(f"  {frame.hex().upper()} mark={mark}\n", "here") == TraceInput(frame, mark)
    assert parse_line(f"mark={mark:#x} {frame.hex(' ')}", "here") == TraceInput(frame, mark)


def test_leading_zeros_are_decimal() -> None:
    assert parse_line(f"{FRAME.hex()} mark=010", "here").mark == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pairs of hex digits"),
        ("xyz", "xyz: a frame is written as pairs of hex digits"),
        ("0" * 27, "pairs of hex digits"),
        ("٠٠" * 20, "pairs of hex digits"),
        ("00" * 13, "a frame of 13 bytes; should be 14 to 3500"),
        ("00" * 3501, "a frame of 3501 bytes"),
        (f"{FRAME.hex()} mark=-1", "'mark=-1': a mark is a number from 0 to 4294967295"),
        (f"{FRAME.hex()} mark=4294967296", "a mark is a number"),
        (f"{FRAME.hex()} mark=0x", "a mark is a number"),
        (f"{FRAME.hex()} mark={'9' * 5000}", "a mark is a number"),
        (f"{FRAME.hex()} mark=1 mark=1", "more than one mark=N"),
        (f"{FRAME.hex()} 5", "pairs of hex digits"),
    ],
)
def test_bad_lines_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_line(text, "--hex 3")
    assert str(refused.value).startswith("--hex 3: ")
    assert message in str(refused.value)


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse_line(text, "here")
    except ConfigError as error:
        assert error.problems


def test_a_file_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "frames.txt"
    path.write_text(f"# a comment\n\n{FRAME.hex()}\n   # another\n{FRAME.hex()} mark=7\n")
    assert read_frames(path) == [TraceInput(FRAME, 0), TraceInput(FRAME, 7)]


def test_all_bad_lines_of_a_file_in_one_run(tmp_path: Path) -> None:
    path = tmp_path / "frames.txt"
    path.write_text(f"{FRAME.hex()}\nzz\n\n{FRAME.hex()} mark=x\n")
    with pytest.raises(ConfigError) as refused:
        read_frames(path)
    assert [problem.path for problem in refused.value.problems] == ["line 2", "line 4"]
    assert str(refused.value).count(str(path)) == 2


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"\xff\xff", "is not text")])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "frames.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_frames(path)
