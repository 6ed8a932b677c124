# SPDX-License-Identifier: Apache-2.0
"""Results as tables of text, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..results import Results


@dataclass(frozen=True)
class TextTable:
    """One table; cells are text."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text_columns: tuple[int, ...] = (0,)
    """Columns with text, aligned left; the others have numbers."""


def tables(results: Results) -> Iterator[TextTable]:
    """Yield every table that has rows, in reading order."""
    makers = (_targets, _datapath, _gains, _cores, _live, _control, _rules, _skipped)
    yield from (table for make in makers if (table := make(results)).rows)


def machine_lines(results: Results) -> list[tuple[str, str]]:
    """Return names and values of the machine's description as text."""
    return [(name.replace("_", " "), _plain(value)) for name, value in results.machine.items()]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {item if item is not None else '?'}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)


def _targets(results: Results) -> TextTable:
    rows = [
        (
            target.name,
            f"{number(target.value)} {target.unit}".strip(),
            target.limit_text,
            "met" if target.met else "not met",
        )
        for target in results.targets
    ]
    return TextTable("Targets", ("result", "measured", "target", ""), rows, (0, 3))


def number(value: float) -> str:
    """Format a number with three significant digits, or more where there are more before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _datapath(results: Results) -> TextTable:
    rows = [
        (
            row.row,
            f"v{row.family}",
            f"{row.flows:,}",
            *(f"{value:.1f}" for value in (row.ns, row.floor_ns, row.net_ns)),
            f"{row.min:g}–{row.max:g}",
            f"{row.rounds}/{row.rounds + row.left_out}",
            _share(row.fast_share),
            _share(row.hit_ratio),
        )
        for row in results.datapath
    ]
    heads = ("row", "IP", "flows", "gross", "floor", "net", "min–max", "rounds", "fast", "hits")
    return TextTable("Datapath: nanoseconds per packet, one core", heads, rows)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.0f} %"


def _gains(results: Results) -> TextTable:
    rows = [
        (
            gain.row,
            f"v{gain.family}",
            f"{gain.flows:,}",
            str(gain.cores),
            _percent(gain.gross_percent),
            _percent(gain.net_percent),
            _percent(gain.published_percent),
        )
        for gain in results.gains
    ]
    heads = ("row", "IP", "flows", "cores", "gross", "net", "the talk")
    return TextTable("Packets a second, more than the slow path (the talk: flow-id, a queue per core)", heads, rows)


def _cores(results: Results) -> TextTable:
    rows = [
        (row.row, f"v{row.family}", f"{row.flows:,}", str(row.cores), f"{row.ns:.1f}", f"{row.mpps:.2f}")
        for row in results.cores
    ]
    return TextTable("Several cores at once", ("row", "IP", "flows", "cores", "ns per packet", "Mpps total"), rows)


def _live(results: Results) -> TextTable:
    rows = [
        (
            row.path,
            f"v{row.family}",
            f"{row.flows:,}",
            f"{row.frame_bytes}",
            f"{row.pps:,.0f}",
            f"{row.sent:,}",
            f"{row.sent - row.received:,}",
            f"{row.loss:.4%}",
            f"{row.marked_share:.1%}",
        )
        for row in results.live
    ]
    heads = ("path", "IP", "flows", "bytes", "pps", "sent", "lost", "loss", "marked")
    return TextTable("Live: one core sends, marks in softnic, balances and receives", heads, rows)


def _control(results: Results) -> TextTable:
    rows = [(figure.name, number(figure.value), figure.unit, figure.note) for figure in results.control]
    return TextTable("Control", ("result", "value", "unit", "note"), rows, (0, 2, 3))


def _rules(results: Results) -> TextTable:
    rows = [
        (
            row.backend,
            row.op,
            f"{row.rules:,}",
            f"{row.per_s:,.0f}",
            "–" if row.ratio_to_tc_batch is None else f"{row.ratio_to_tc_batch:.1f}×",
        )
        for row in results.rules
    ]
    return TextTable("Rules", ("backend", "operation", "rules", "per second", "to tc -b"), rows, (0, 1))


def _skipped(results: Results) -> TextTable:
    return TextTable(
        "Not measured", ("part", "reason"), [(skipped.part, skipped.why) for skipped in results.skipped], (0, 1)
    )
