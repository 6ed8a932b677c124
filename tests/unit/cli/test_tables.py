# SPDX-License-Identifier: Apache-2.0
"""Tables: what a pipe gets, what a terminal gets, and that nothing is left out."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from nfcore.cli import tables
from nfcore.cli.tables import MOST_DRAWN, PIPE_WIDTH, TextTable, show, target_columns

WORDS = st.text(st.sampled_from("abcdefgh0123456789.:/[]>-–ä負載"), min_size=1, max_size=20)
LINES = set("│┃━─┏┓┗┛└┘├┤┬┴┼╇╈╋┡┩┳┻")
CELLS = st.lists(WORDS, max_size=40).map(" ".join)


def piped(table: TextTable, most_drawn: int = 0) -> list[str]:
    """The lines that a pipe gets."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(tables, "MOST_DRAWN", most_drawn)
        show(table)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("most_drawn", [0, 1000])
@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=12))
def test_a_pipe_gets_every_word_in_lines_that_can_be_read(most_drawn: int, rows: list[tuple[str, ...]]) -> None:
    table = TextTable("flow", "state", "why", "what to do")
    for row in rows:
        table.add_row(*row)
    lines = piped(table, most_drawn)
    written = sorted(word for word in " ".join(lines).split() if not set(word) & LINES)
    expected = [
        "flow",
        "state",
        "why",
        "what",
        "to",
        "do",
        *(word for row in rows for cell in row for word in cell.split()),
    ]
    assert written == sorted(expected)
    assert max(map(cell_len, lines)) <= PIPE_WIDTH


def test_rows_without_prose_stay_on_a_line() -> None:
    table = TextTable("flow", "why")
    table.add_row("[2001:db8::1]:4000 > [2001:db8:10::1]:80/tcp", "because " * 40)
    table.add_row("198.18.1.2:4000 > 198.18.10.1:80/tcp", "idle")
    for lines in (piped(table), piped(table, 1000)):
        rows = ["".join(char for char in line if char not in LINES).split() for line in lines]
        assert ["198.18.1.2:4000", ">", "198.18.10.1:80/tcp", "idle"] in rows
        whole = [row[3:] for row in rows if row[:3] == ["[2001:db8::1]:4000", ">", "[2001:db8:10::1]:80/tcp"]]
        assert len(whole) == 1 and set(whole[0]) == {"because"}


def test_one_huge_word_is_broken_and_the_rest_stays() -> None:
    table = TextTable("metric", "labels", "value")
    table.add_row("nfcore_odd", "interface=eth1", "9" * 4000)
    for lines in (piped(table), piped(table, 1000)):
        assert max(map(len, lines)) <= PIPE_WIDTH
        assert "".join(lines).count("9") == 4000
        assert any("nfcore_odd" in line and "interface=eth1" in line for line in lines)


def test_columns_are_aligned_whatever_characters_they_have() -> None:
    table = TextTable("name", "value")
    for name in ("dienste", "größe", "负载", "line\nbreak"):
        table.add_row(name, "1")
    assert piped(table) == ["name     value", "dienste  1", "größe    1", "负载     1", "line     1", "break"]


@pytest.mark.parametrize("rows", [3, MOST_DRAWN + 1])
def test_a_terminal_gets_lines_around_a_table_unless_it_has_many_rows(rows: int) -> None:
    script = f"""
from nfcore.cli import tables
from nfcore.cli.tables import TextTable, show
table = TextTable("metric", "value")
for number in range({rows}):
    table.add_row(f"nfcore_metric_{{number}}", "x " * 100)
show(table)
"""
    terminal, other = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", script], stdout=other, env=os.environ | {"TERM": "xterm"}) as drawing:
        os.close(other)
        shown = b""
        while True:
            try:
                shown += os.read(terminal, 65_536)
            except OSError:  # the other end is closed
                break
    os.close(terminal)
    assert drawing.returncode == 0
    assert all(f"nfcore_metric_{number} ".encode() in shown for number in range(rows))
    assert ("│".encode() in shown) is (rows <= MOST_DRAWN)
    assert shown.count(b"x") == 100 * rows


def test_a_table_in_a_pipe_needs_no_library_that_draws() -> None:
    script = """
import sys
from nfcore.cli import tables
from nfcore.cli.tables import TextTable, show
table = TextTable("metric", "value")
for number in range(60_000):
    table.add_row(f"nfcore_real_packets_total{number}", "1")
show(table)
print(*(name for name in ("rich", "numpy", "pydantic") if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert len(done.stdout.splitlines()) == 60_001


@pytest.mark.parametrize("rows", [1, MOST_DRAWN + 1])
def test_an_address_is_printed_as_it_is(rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    table = TextTable("real")
    for _ in range(rows):
        table.add_row("2001:db8:a:1")
    show(table)
    assert capsys.readouterr().out.count("2001:db8:a:1") == rows


def test_columns_are_the_words_of_the_only_function() -> None:
    balancer = {"nf": "lb", "target": {"vip": "v", "real": "r"}}
    meter, gone = {"nf": "meter", "target": {"port": "80"}}, {"nf": "meter", "target": {}}
    tunnel = {"nf": "tunnel", "target": {"tag": "7", "queue": "3"}}
    wordy = {"nf": "wordy", "target": {"a": "1", "b": "2", "c": "3", "d": "4"}}
    assert target_columns([balancer]) == (["VIP", "real"], [["v", "r"]])
    assert target_columns([meter, gone]) == (["port"], [["80"], [""]])
    assert target_columns([tunnel]) == (["TAG", "queue"], [["7", "3"]])
    assert target_columns([tunnel, meter])[1] == [["tunnel", "7 → 3"], ["meter", "port 80"]]
    both = (["function", "target"], [["lb", "v → r"], ["meter", "port 80"]])
    assert target_columns([balancer, meter]) == both
    assert target_columns([wordy]) == (["function", "target"], [["wordy", "a 1, b 2, c 3, d 4"]])
    assert target_columns([]) == (["function", "target"], [])
