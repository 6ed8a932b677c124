# SPDX-License-Identifier: Apache-2.0
"""Draws the board as lines of text for a given width and height. No terminal, no socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from nfcore.text import printable, target_of_flow

from .keys import View
from .model import Board, History, Row, arrange

MOST_TROUBLES = 3
_BARS = "▁▂▃▄▅▆▇█"
_TITLES = {"vips": "VIP", "reals": "REAL", "flows": "FLOW"}
KEYS = "↑↓ enter open  esc back  tab table  s sort  / filter  p pause  h help  q quit"
FEWER_KEYS = "h help  q quit"
HELP = (
    ("↑ ↓, k j", "select a row of the focused table (bright title)"),
    ("tab", "focus the next table"),
    ("enter", "open the selected VIP: its reals and flows"),
    ("esc, backspace", "remove the filter; then leave the VIP"),
    ("s S, → ←", "sort by the next, or previous, column (▼)"),
    ("r", "reverse the order (▲)"),
    ("e", "show flows, too, that have ended, or hide them"),
    ("/", "filter the focused table and the flows: part of a name, address, prefix"),
    ("p, space", "pause, or continue"),
    ("q, Ctrl-C", "quit"),
)


def short(value: float | None) -> str:
    """Return a number in at most five characters, such as ``12.3M``; ``–`` when it is unknown."""
    if value is None:
        return "–"
    for limit, size, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G"), (1e15, 1e12, "T")):
        if abs(value) < limit * 0.9995:
            scaled = value / size
            digits = 0 if (not unit and scaled == int(scaled)) or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0e}"


def percent(share: float | None) -> str:
    """Return a share of 0 to 1 in percent."""
    return "–" if share is None else f"{100 * share:.1f} %"


def sparkline(shares: Sequence[float | None], width: int) -> str:
    """Draw the last `width` shares of 0 to 1, a character each; a space for an unknown one."""
    last = shares[-width:] if width > 0 else []
    return "".join(" " if s is None else _BARS[min(len(_BARS) - 1, max(0, int(s * len(_BARS))))] for s in last)


def gauge(share: float, width: int) -> str:
    """Draw a share of 0 to 1 as a bar."""
    filled = min(width, max(0, round(share * width)))
    return "█" * filled + "░" * (width - filled)


def duration(seconds: float) -> str:
    """Return a time as ``3d 4:05:06``."""
    whole = int(seconds)
    days, rest = divmod(whole, 86_400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}d {clock}" if days else clock


@dataclass(frozen=True)
class _Column:
    """A column of a table; `key` is its sort key."""

    title: str
    key: str
    width: int


_ROWS = (
    _Column("packets/s", "packets", 10),
    _Column("bit/s", "bits", 8),
    _Column("share", "share", 7),
    _Column("fast", "fast", 7),
    _Column("packets", "total", 9),
)
_FLOWS = (
    _Column("state", "", 10),
    _Column("packets/s", "rate", 10),
    _Column("packets", "packets", 9),
    _Column("mark", "mark", 6),
)


def shown(board: Board, view: View, table: str) -> list[Row] | list[Mapping[str, Any]]:
    """Return the rows of a table in order. The filter applies to the focused table and to the flows; the daemon has
    selected, sorted and filtered these already.
    """
    if table == "flows":
        return list(board.flows)
    rows = board.vips if table == "vips" else board.reals
    backwards = view.backwards and view.focus == table
    text = view.text if table == view.focus else ""
    return arrange(rows, view.sort_of(table), text, backwards=backwards)


def names(board: Board, view: View) -> list[str]:
    """Return the names of the focused table's rows, as shown."""
    return [row.name if isinstance(row, Row) else str(row["flow"]) for row in shown(board, view, view.focus)]


def draw(board: Board, view: View, history: History, width: int, height: int) -> list[Text]:
    """Draw everything into exactly `height` lines of at most `width` characters."""
    lines = [*_head(board, view, history, width)]
    if view.helping:
        lines += [Text(f"  {keys:<16} {what}") for keys, what in HELP]
    else:
        lines += _tables(board, view, width, height - len(lines) - 1)
    lines = lines[: max(0, height - 1)]
    lines += [Text()] * (height - 1 - len(lines))
    return [_cut(line, width) for line in [*lines, _foot(view, width)][-height:]]


def draw_message(message: str, width: int, height: int) -> list[Text]:
    """Draw a message instead of a board."""
    lines = [
        Text("nfcore top", style="bold"),
        Text(),
        Text(printable(message), style="yellow"),
        Text("trying again …"),
        Text(),
    ]
    folded = [part for line in lines for part in _fold(line, width)][: max(0, height - 1)]
    return [*folded, *[Text()] * (height - 1 - len(folded)), _cut(Text("q quit", style="dim"), width)][-height:]


def _fold(line: Text, width: int) -> list[Text]:
    plain = line.plain
    return [Text(plain[at : at + width], style=line.style) for at in range(0, max(1, len(plain)), max(1, width))]


def _cut(line: Text, width: int) -> Text:
    if not line.plain.isprintable():
        line = Text(printable(line.plain), style=line.style)
    line.truncate(max(0, width), overflow="ellipsis")
    return line


def _head(board: Board, view: View, history: History, width: int) -> list[Text]:
    nics = ", ".join(f"{nic.name}: {' '.join(nic.backends) or 'no backend'}" for nic in board.nics)
    marks = f"{board.strategy} marks" if board.strategy else "unaccelerated"
    first = Text.assemble(("nfcore top", "bold"), f"  {nics}  {marks}  up {duration(board.up_seconds)}")
    if view.paused:
        first.append("  PAUSED", style="bold yellow")
    if not board.offload:
        first.append("  offload off", style="bold yellow")
    traffic = f"packets {short(board.packets)}/s   {short(board.bits)} bit/s   new flows {short(board.new_flows)}/s"
    share = Text.assemble("fast path ", (f"{percent(board.fast_share):>7}", "bold green"), " ")
    share.append(sparkline(history.shares, width - 20), style="green")
    fill = board.rules / board.max_rules if board.max_rules else 0.0
    table = Text.assemble(
        f"rules {board.rules:,} of {board.max_rules:,} ({100 * fill:.1f} %) ",
        (gauge(fill, 16), "red" if fill > 0.9 else "cyan"),
        f"  waiting {board.states.get('waiting', 0):,}  without {board.states.get('refused', 0):,}",
    )
    if ended := board.states.get("ended", 0):
        table.append(f"  ended {ended:,}")
    for nic in board.nics:
        if nic.full:
            table.append(f"  {nic.name} FULL", style="bold red")
    counts = Text(f"marks {_count(board.marks)}   not offloaded {short(board.not_offloaded)}/s   ")
    counts.append(f"drops {short(board.drops)}/s   ", style="red" if board.drops else "")
    counts.append(f"reports lost {_count(board.lost)}   ", style="red" if board.lost else "")
    counts.append(f"plugin errors {board.errors:,}", style="red" if board.errors else "")
    troubles = [Text(f"! {trouble}", style="bold red") for trouble in board.troubles[:MOST_TROUBLES]]
    return [
        first,
        *troubles,
        Text(traffic),
        *_functions(board),
        *_ways(board),
        share,
        table,
        counts,
        _filter(board, view),
    ]


def _functions(board: Board) -> list[Text]:
    """Draw what each function of a chain does; nothing for one function that has VIPs or reals."""
    if len(board.functions) < 2 and (board.vips or board.reals):
        return []
    return [
        Text(f"{function}  " + "  ".join(f"{outcome} {short(rate)}/s" for outcome, rate in outcomes.items() if rate))
        for function, outcomes in sorted(board.functions.items())
    ]


def _ways(board: Board) -> list[Text]:
    """Draw what a balancer does of what its TOML asks for; nothing when that is nothing."""
    return [Text("   ".join(f"{title} {short(rate)}/s" for title, rate in board.ways.items()))] if board.ways else []


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _filter(board: Board, view: View) -> Text:
    """Draw the open VIP, and the filter as it is typed."""
    line = Text()
    if view.vip:
        row = next((row for row in board.vips if row.name == view.vip), None)
        rates = f"  {short(row.packets)}/s  {short(row.bits)} bit/s" if row else "  is gone"
        line.append(f"VIP {view.vip}", style="bold").append(rates + "   ")
    if view.typed is not None:
        line.append(f"filter: {view.typed}█", style="bold")
    elif view.text:
        line.append(f"filter: {view.text}", style="bold")
    return line


def _foot(view: View, width: int) -> Text:
    if view.typed is not None:
        return Text("enter apply  esc cancel", style="dim")
    if view.helping:
        return Text("any key: back", style="dim")
    return Text(KEYS if len(KEYS) <= width else FEWER_KEYS, style="dim")


def _tables(board: Board, view: View, width: int, height: int) -> list[Text]:
    rows = {table: shown(board, view, table) for table in view.tables}
    heights = share_out({table: len(rows[table]) for table in view.tables}, view.focus, height - len(rows))
    lines: list[Text] = []
    for table in view.tables:
        lines += _table(table, rows[table], view, width, heights[table])
    return lines


def share_out(wanted: Mapping[str, int], focus: str, room: int) -> dict[str, int]:
    """Divide `room` lines among tables: each gets up to a fifth, then the focused one as many as it has rows."""
    room = max(0, room)
    heights = {table: min(rows, room // 5) for table, rows in wanted.items()}
    for table in (focus, *(table for table in wanted if table != focus)):
        more = min(wanted[table] - heights[table], room - sum(heights.values()))
        heights[table] += max(0, more)
    return heights


def _table(table: str, rows: Sequence[Any], view: View, width: int, room: int) -> list[Text]:
    focused, columns = table == view.focus, _FLOWS if table == "flows" else _ROWS
    name_width = max(8, width - sum(column.width + 1 for column in columns))
    sort, mark = view.sort_of(table), "▲" if view.backwards and focused else "▼"
    title = _TITLES[table]
    if table == "reals" and view.vip:
        # The datapath counts per VIP and per real, not per pair.
        title += " (of all its VIPs)"
    title += mark if sort == "name" else ""
    if table == "flows" and sort not in {column.key for column in columns}:
        title += f" by {sort} {mark}"
    head = title.ljust(name_width)[:name_width]
    for column in columns:
        text = column.title + (mark if column.key == sort else "")
        head += " " + text.rjust(column.width)
    lines = [Text(head, style="bold reverse" if focused else "reverse dim")]
    selected = min(view.selected, max(0, len(rows) - 1)) if focused else -1
    begin = max(0, min(selected - room + 1, len(rows) - room)) if selected >= room else 0
    for number, row in enumerate(rows[begin : begin + room], begin):
        name, cells = _cells(row, name_width)
        name = printable(name)
        text = name if len(name) <= name_width else name[: name_width - 1] + "…"
        line = text.ljust(name_width) + "".join(
            f" {c[: k.width]:>{k.width}}" for c, k in zip(cells, columns, strict=True)
        )
        lines.append(Text(line, style="bold" if number == selected else ""))
    return lines


def _cells(row: Row | Mapping[str, Any], width: int) -> tuple[str, list[str]]:
    """Return a row's name, with the target of a flow if there is room for it, and the texts of its columns."""
    if isinstance(row, Row):
        shares = [percent(row.share), percent(row.fast)]
        return row.name, [short(row.packets), short(row.bits), *shares, short(row.total)]
    name = f"{row['flow']} {target_of_flow(row.get('target') or {}, ' {}')}".rstrip()
    name = name if len(name) <= width else str(row["flow"])
    return name, [str(row["state"]), short(row["rate"]), short(row["hardware_packets"]), str(row["mark"] or "–")]
