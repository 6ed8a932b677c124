# SPDX-License-Identifier: Apache-2.0
"""`nfcore top` without a terminal and without a daemon: rates, order, keys and what is drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.errors import HostError
from nfcore.plugins.stats.top.app import Display, parameters_of
from nfcore.plugins.stats.top.keys import TABLES, KeyReader, View, press
from nfcore.plugins.stats.top.model import FLOW_KEYS, ROW_KEYS, WAYS, History, Row, Sample, arrange, compare, growth
from nfcore.plugins.stats.top.summary import FAMILIES
from nfcore.plugins.stats.top.view import (
    draw,
    draw_message,
    duration,
    gauge,
    names,
    percent,
    share_out,
    short,
    sparkline,
)

Labelled = Mapping[str, float]


def answer(
    time: float,
    *,
    run: str = "1",
    vips: Labelled | None = None,
    reals: Labelled | None = None,
    fast: float = 0,
    slow: float = 0,
    **about: Any,
) -> Sample:
    """An answer of the daemon: packets per VIP and real, of 100 bytes each."""
    vips, reals = vips or {}, reals or {}
    values: dict[str, Any] = {
        "nfcore_packets_total": [[{"path": "fast"}, fast], [{"path": "slow"}, slow]],
        "nfcore_rules": [
            [{"interface": "eth1", "backend": "nic", "state": "installed"}, 5],
            [{"interface": "eth1", "backend": "nic", "state": "draining"}, 2],
        ],
        "nfcore_vip_new_flows_total": [[{"vip": name}, value / 10] for name, value in (vips or {}).items()],
        "nfcore_vip_path_packets_total": [
            [{"vip": name, "path": path}, share * value]
            for name, value in (vips or {}).items()
            for path, share in (("fast", 0.75), ("slow", 0.25))
        ],
        "nfcore_nic_full": [[{"interface": "eth1"}, 1]],
        "nfcore_not_offloaded_total": [],
    }
    values |= about.pop("more", {})
    for label, counters in (("vip", vips), ("real", reals)):
        values[f"nfcore_{label}_packets_total"] = [[{label: name}, value] for name, value in counters.items()]
        values[f"nfcore_{label}_bytes_total"] = [[{label: name}, 100 * value] for name, value in counters.items()]
    fixed = {
        "run": run,
        "time": time,
        "up_seconds": 3661.0,
        "values": values,
        "flows": [
            {"flow": f"198.18.1.2:{n} > 198.18.10.1:80/tcp", "real": "198.18.20.11", "state": "installed"}
            | {"rate": 100.0 - n, "packets": 0, "hardware_packets": 1000 + n, "mark": n or None}
            for n in range(30)
        ],
        "states": {"waiting": 3, "refused": 7},
        "offload": True,
        "max_rules": 10,
        "strategy": "dest-id",
        "interfaces": {"eth1": ["nic"]},
        "vip": "",
        "reals": [],
    }
    return Sample.read(json.loads(json.dumps(fixed | about)))


def test_rates_are_what_came_between() -> None:
    before = answer(10, vips={"a": 1000, "b": 0}, reals={"r": 5}, fast=800, slow=200)
    after = answer(12, vips={"a": 1600, "b": 200}, reals={"r": 5}, fast=1400, slow=400)
    board = compare(before, after)
    assert (board.seconds, board.packets, board.fast_share) == (2, 400, 0.75)
    assert board.bits == 8 * 100 * 400
    assert board.vips == [Row("a", 300, 240_000, 0.75, 1600, 0.75), Row("b", 100, 80_000, 0.25, 200, 0.75)]
    assert board.new_flows == 40
    assert board.reals == [Row("r", 0, 0, None, 5)]
    assert (board.rules, board.max_rules, board.nics[0].full, board.not_offloaded) == (5, 10, True, 0)
    assert board.lost is None and board.drops is None  # the daemon has no such figure
    assert json.loads(json.dumps(board.as_json()))["fast_share"] == 0.75


def test_nothing_is_known_of_one_sample_or_of_two_daemons() -> None:
    one = answer(10, vips={"a": 1000}, fast=500)
    for board in (compare(None, one), compare(answer(9, run="2", vips={"a": 1}), one), compare(one, one)):
        assert (board.seconds, board.packets, board.bits, board.fast_share) == (None, None, None, None)
        assert board.vips == [Row("a", None, None, None, 1000)]


def test_a_vip_that_is_new_has_no_rate_yet() -> None:
    board = compare(answer(1, vips={"a": 0}), answer(2, vips={"a": 1, "b": 9_000}))
    assert [row.packets for row in board.vips] == [1, None]


def test_each_function_of_a_chain_has_a_line() -> None:
    def counted(drops: int, sent: int) -> dict[str, Any]:
        outcomes = [("flow_actions", "drop", drops), ("flow_actions", "pass", 0), ("katran_accel", "sent", sent)]
        return {"nfcore_function_packets_total": [[{"function": f, "outcome": o}, n] for f, o, n in outcomes]}

    board = compare(answer(10, more=counted(0, 0)), answer(12, more=counted(3000, 20)))
    assert board.functions == {"flow_actions": {"drop": 1500, "pass": 0}, "katran_accel": {"sent": 10}}
    drawn = [line.plain.rstrip() for line in draw(board, View(), History(), 80, 24)]
    assert {"flow_actions  drop 1.50k/s", "katran_accel  sent 10/s"} <= set(drawn)


def test_what_a_balancer_is_asked_for_is_a_line_of_its_own() -> None:
    def counted(by_id: float, others: float) -> dict[str, Any]:
        outcomes = {"by_id": by_id, "by_flow": others}
        samples = [[{"kind": "quic", "outcome": outcome}, value] for outcome, value in outcomes.items()]
        return {
            "nfcore_server_id_packets_total": samples,
            "nfcore_decap_packets_total": [[{"family": family}, others] for family in ("4", "6")],
        }

    board = compare(answer(10, more=counted(0, 0)), answer(12, more=counted(3000, 20)))
    assert board.ways == {"by server id": 1500, "decapsulated": 20}
    drawn = [line.plain.rstrip() for line in draw(board, View(), History(), 80, 24)]
    assert "by server id 1.50k/s   decapsulated 20/s" in drawn
    first = [
        line.plain.rstrip() for line in draw(compare(None, answer(1, more=counted(1, 1))), View(), History(), 80, 24)
    ]
    assert "by server id –/s   decapsulated –/s" in first
    without = compare(answer(10), answer(12))
    assert not without.ways
    assert len(draw(without, View(), History(), 80, 24)) == len(drawn) == 24
    assert {family for family, _ in WAYS.values()} <= set(FAMILIES)


COUNTERS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2**64 - 1), max_size=4)


@given(COUNTERS, COUNTERS, st.floats(-5, 5), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_rate_is_negative_whatever_the_counters_do(
    before: dict[str, int], after: dict[str, int], seconds: float, fast: int, slow: int
) -> None:
    first = answer(100, vips=before, reals=after, fast=fast, slow=slow)
    board = compare(first, answer(100 + seconds, vips=after, reals=before, fast=slow, slow=fast))
    figures = [board.packets, board.bits, board.fast_share]
    for row in (*board.vips, *board.reals):
        figures += [row.packets, row.bits, row.share]
    assert all(figure is None or figure >= 0 for figure in figures)
    assert board.fast_share is None or board.fast_share <= 1
    draw(board, View(), History(), 80, 24)


def test_a_counter_that_began_anew() -> None:
    assert growth(100, 130) == 30
    assert growth(2**64 - 1, 7) == 7


def row(name: str, packets: float | None) -> Row:
    return Row(name, packets, None, None, 0)


def test_rows_in_an_order() -> None:
    rows = [row("b", 1), row("a", 5), row("d", None), row("c", 5)]
    assert [each.name for each in arrange(rows, "packets")] == ["a", "c", "b", "d"]
    assert [each.name for each in arrange(rows, "packets", backwards=True)] == ["b", "a", "c", "d"]
    assert [each.name for each in arrange(rows, "name", backwards=True)] == ["d", "c", "b", "a"]
    assert arrange([row("10.0.0.1:80/tcp", 1), row("10.0.0.1:80/udp", 1)], "name", "10.0 udp")[0].name.endswith("udp")


# Keys


def keys(*pieces: bytes) -> list[str]:
    reader, found = KeyReader(), []
    for piece in pieces:
        found += reader.feed(piece)
    return found + list(reader.flush())


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([b"q"], ["q"]),
        ([b"\x1b[A\x1b[B"], ["up", "down"]),
        ([b"\x1b", b"[", b"A"], ["up"]),
        ([b"\x1bOA\x1bOB"], ["up", "down"]),
        ([b"\x1b"], ["escape"]),
        ([b"\x1bq"], ["escape", "q"]),
        ([b"\x1b[15~\x1b[1;5Cx"], ["x"]),  # F5 and Ctrl-right mean nothing here
        ([b"\r\t\x7f\x1b[Z"], ["enter", "tab", "backspace", "backtab"]),
        ([b"\x00\xff\xc3\xa9"], []),
    ],
)
def test_keys_of_what_a_terminal_sends(pieces: list[bytes], found: list[str]) -> None:
    assert keys(*pieces) == found


@given(st.binary(max_size=40), st.integers(0, 40))
def test_any_bytes_are_keys_or_nothing(data: bytes, cut: int) -> None:
    for key in keys(data[:cut], data[cut:]):
        assert len(key) == 1 or key.isalpha()


def test_looking_into_a_vip_and_back() -> None:
    view = press(press(View(), "down", ["a", "b"]), "enter", ["a", "b"])
    assert (view.vip, view.focus, view.selected) == ("b", "flows", 0)
    assert press(view, "tab", []).focus == "reals"
    back = press(view, "escape", [])
    assert (back.vip, back.focus) == ("", "vips")
    assert press(View(), "enter", []) == View()


def test_a_filter_is_typed() -> None:
    view = View()
    for key in ["/", "q", "x", "backspace", "8", "0", "enter"]:
        view = press(view, key, [])
    assert (view.text, view.typed, view.over) == ("q80", None, False)
    for key in ["/", "z", "escape"]:
        view = press(view, key, [])
    assert view.text == "q80"
    assert press(view, "escape", []).text == ""


NAMED = ["q", "h", "p", "/", "r", "s", "S", "up", "down", "tab", "backtab", "enter", "escape", "backspace", "x", "8"]


@given(st.lists(st.sampled_from(NAMED), max_size=40))
def test_no_row_of_keys_leads_out_of_the_board(pressed: list[str]) -> None:
    display = Display(View())
    display.take(answer(1, vips={"a": 1, "b": 2, "c": 3}, reals={"r": 1}), 0)
    for key in pressed:
        display.press(key)
        view = display.view
        assert view.focus in view.tables
        assert all(
            sort in (FLOW_KEYS if t == "flows" else ROW_KEYS) for t, sort in zip(TABLES, view.sorts, strict=True)
        )
        assert len(display.lines(80, 24)) == 24


# Drawing


def shown(display: Display, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain for line in display.lines(width, height)]


@pytest.fixture
def display() -> Display:
    """Two samples of a hundred VIPs."""
    display = Display(View())
    reals = {f"198.18.20.{n}": 10.0 * n for n in range(50)}
    for time in (1, 2):
        vips = {f"198.18.10.{n}:80/tcp": 1000.0 * n * time for n in range(100)}
        display.take(answer(time, vips=vips, reals=reals, fast=3000 * time, slow=1000 * time), 0)
    return display


def test_the_view_at_80_by_24(display: Display) -> None:
    lines = shown(display)
    assert len(lines) == 24 and max(map(len, lines)) <= 80
    assert lines[0].startswith("nfcore top  eth1: nic  dest-id marks  up 1:01:01")
    assert lines[2].startswith("fast path  75.0 %") and lines[2].rstrip().endswith("▇")
    assert lines[3].startswith("rules 5 of 10 (50.0 %) ████████░░░░░░░░  waiting 3  without 7  eth1 FULL")
    assert lines[6].split() == ["VIP", "packets/s▼", "bit/s", "share", "fast", "packets"]
    assert lines[7].split() == ["198.18.10.99:80/tcp", "99.0k", "79.2M", "2.0", "%", "75.0", "%", "198k"]
    assert (
        sum(line.startswith("198.18.10.") for line in lines) > sum(line.startswith("198.18.20.") for line in lines) > 1
    )
    assert lines[-1].endswith("q quit")


def test_the_selected_row_is_kept_in_sight(display: Display) -> None:
    for _ in range(150):
        display.press("down")
    assert any(line.startswith("198.18.10.0:80/tcp") for line in shown(display))
    assert names(display.board, display.view)[display.view.selected] == "198.18.10.0:80/tcp"  # type: ignore[arg-type]


def test_a_vip_that_is_looked_into(display: Display) -> None:
    display.press("enter")
    display.take(answer(3, vips={"198.18.10.99:80/tcp": 7}, reals={"r1": 1, "r2": 2}, vip="x"), 0)
    lines = shown(display)
    assert lines[5].startswith("VIP 198.18.10.99:80/tcp")
    assert not any(line.startswith("VIP ") for line in lines[6:])
    assert lines[6].startswith("REAL (of all its VIPs)")


def test_a_flow_has_the_packets_of_all_its_rules(display: Display) -> None:
    (first, *_) = [line for line in shown(display, 100, 60) if line.startswith("198.18.1.2:0 ")]
    assert first.split()[-4:] == ["installed", "100", "1.00k", "–"]


def test_flows_in_reverse_are_asked_for(display: Display) -> None:
    for key in ("tab", "tab"):
        display.press(key)
    assert "reverse" not in parameters_of(display.view)
    display.press("r")
    assert parameters_of(display.view)["reverse"] is True
    display.press("tab")  # the order of another table is turned round
    assert "reverse" not in parameters_of(display.view)


def test_what_is_wrong_is_said_in_red(display: Display) -> None:
    old = [[{"interface": "eth1"}, 34.2], [{"interface": "eth2"}, 3.0]]
    values = raw(answer(3)) | {"nfcore_counters_age_seconds": old}
    display.take(answer(3, values=values, troubles=["eth1: the program is no longer attached"]), 0)
    lines = display.lines(80, 24)
    assert len(lines) == 24
    assert [line.plain for line in lines[1:3]] == [
        "! eth1: the program is no longer attached",
        "! eth1: the NIC's counters were last read 34 s ago",
    ]
    assert all("red" in str(line.style) for line in lines[1:3])
    assert lines[3].plain.startswith("packets")
    assert display.board is not None and len(display.board.as_json()["troubles"]) == 2


def raw(sample: Sample) -> dict[str, Any]:
    values: dict[str, Any] = sample.answer["values"]
    return values


@pytest.mark.parametrize("value", ["NaN", "+Inf", float("nan"), None, [], 10**400])
def test_what_is_no_number_is_not_known(value: Any) -> None:
    values = raw(answer(3)) | {"nfcore_rules": [[{"interface": "eth1", "state": "installed"}, value]]}
    values |= {"nfcore_packets_total": [[{"path": "fast"}, value], [{"path": "slow"}, 4]]}
    board = compare(answer(1), Sample.read({**answer(3).answer, "values": values}))
    assert board.rules == 0
    assert len(draw(board, View(), History(), 80, 24)) == 24


def test_names_steer_no_terminal() -> None:
    board = compare(None, answer(1, vips={"\x1b[2Ja\udc80\nb": 1}, strategy="\x1b[31m"))
    lines = draw(board, View(), History(), 80, 24)
    assert all(line.plain.isprintable() for line in lines)
    assert any(line.plain.startswith(r"\x1b[2Ja\udc80\nb ") for line in lines)
    assert draw_message("a\x1b[2Jb", 80, 24)[2].plain == r"a\x1b[2Jb"


@given(width=st.integers(1, 200), height=st.integers(1, 60), typed=st.booleans(), helping=st.booleans())
def test_any_size_is_filled_and_not_overrun(width: int, height: int, typed: bool, helping: bool) -> None:
    view = View(typed="abc" if typed else None, helping=helping, paused=True, vip="v" if typed else "", focus="flows")
    board = compare(None, answer(1, vips={"a" * 60: 1}, reals={"2001:db8::1": 5}))
    for lines in (draw(board, view, History(), width, height), draw_message("no daemon " * 20, width, height)):
        assert len(lines) == height
        assert all(len(line.plain) <= width for line in lines)


def test_without_a_daemon_it_is_said(display: Display) -> None:
    display.take(HostError("no daemon answers at /run/x.sock; start one: nfcore run CONFIG"), 0)
    text = "\n".join(shown(display, 100))
    assert "no daemon answers at /run/x.sock; start one: nfcore run CONFIG" in text and "trying again" in text
    display.take(answer(1, run="2", vips={"a": 1}), 0)
    assert "–/s" in shown(display)[1]  # no rate is known of the new one yet


def test_what_is_paused_stands_still(display: Display) -> None:
    display.press("p")
    before = shown(display)
    display.take(answer(3, vips={"198.18.10.1:80/tcp": 10**9}, fast=10**9), 0)
    assert shown(display) == before
    display.press("p")
    display.take(answer(4, vips={"198.18.10.1:80/tcp": 10**10}, fast=10**10), 0)
    assert shown(display) != before


def test_an_answer_that_comes_early_keeps_the_rates(display: Display) -> None:
    packets = display.board.packets  # type: ignore[union-attr]
    display.take(answer(2.001, fast=6001, slow=2000, flows=[]), 0.5)
    assert display.board is not None and (display.board.packets, list(display.board.flows)) == (packets, [])


@given(st.floats(0, 1e18))
def test_numbers_are_short(value: float) -> None:
    text = short(value)
    assert len(text) <= 5
    found = re.fullmatch(r"([0-9.]+)([kMGT]?)", text)
    if found:
        unit = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[found[2]]
        assert abs(float(found[1]) * unit - value) <= max(0.006 * value, 0.006)


def test_small_things() -> None:
    assert (short(None), short(0), short(7), short(1234), short(999_960)) == ("–", "0", "7", "1.23k", "1.00M")
    assert (percent(None), percent(0.123)) == ("–", "12.3 %")
    assert sparkline([0.0, 0.5, 1.0, None, 1.0], 4) == "▅█ █" and sparkline([1.0], 0) == ""
    assert (gauge(0.5, 4), gauge(7, 2), gauge(0, 2)) == ("██░░", "██", "░░")
    assert (duration(59), duration(90_061)) == ("0:00:59", "1d 1:01:01")


@given(
    st.fixed_dictionaries({table: st.integers(0, 50) for table in TABLES}), st.sampled_from(TABLES), st.integers(-5, 80)
)
def test_room_is_shared_out(wanted: dict[str, int], focus: str, room: int) -> None:
    given_room = share_out(wanted, focus, room)
    assert all(0 <= given_room[table] <= wanted[table] for table in TABLES)
    assert sum(given_room.values()) == min(sum(wanted.values()), max(0, room))


def test_without_vips_and_reals_there_are_only_flows(display: Display) -> None:
    flow = {"flow": "198.18.1.2:1 > 198.18.2.2:80/tcp", "nf": "meter", "target": {"port": "80"}, "state": "installed"}
    flow |= {"rate": 1.0, "packets": 0, "hardware_packets": 1, "mark": 1}
    display.take(answer(1, flows=[flow]), 0)
    lines = [line.plain.rstrip() for line in display.lines(100, 24)]
    assert not [line for line in lines if line.startswith(("VIP", "REAL"))]
    assert any(line.startswith("198.18.1.2:1 > 198.18.2.2:80/tcp  port 80") for line in lines)
    display.press("tab")
    assert display.view.focus == "flows"
    display.take(answer(2, vips={"a": 1}), 0)
    assert display.view.tables == TABLES


def test_ended_flows_are_counted_and_asked_for_by_a_key(display: Display) -> None:
    display.take(answer(1, vips={"a": 0}, states={"refused": 2, "ended": 1621}), 0)
    assert any("without 2  ended 1,621" in line.plain for line in display.lines(100, 24))
    assert "ended" not in parameters_of(display.view)
    display.press("e")
    assert parameters_of(display.view)["ended"] is True
