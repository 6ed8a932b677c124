# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs no other file. It follows the light or dark theme of the browser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from ..datapath import Row
from ..results import Results
from .svg import StackedBar, lines, stacked_bars
from .tables import TextTable, machine_lines, tables

STYLE = Path(__file__).with_name("style.css")


def render(results: Results) -> str:
    """Return the whole page."""
    title = f"nfcore bench: {results.nf}"
    body = "".join(_body(results, title))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>\n{body}</body></html>\n"
    )


def _body(results: Results, title: str) -> Iterator[str]:
    machine = results.machine
    yield f"<h1>{escape(title)}</h1>\n"
    subtitle = f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel'].split(' #')[0]}; {machine['time']}; "
    yield f'<p class="soft">{escape(subtitle)}{results.size} run, {results.seconds:g} s</p>\n'
    for table in tables(results):
        yield f"<h2>{escape(table.title)}</h2>\n"
        yield from _plots(results, table.title.split(":")[0])
        yield _table(table)
        if table.title == "Targets":
            yield from _profiles(results)
    yield "<h2>Machine</h2>\n<dl>"
    yield from (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in machine_lines(results))
    yield "</dl>\n<h2>Notes</h2>\n<ul>"
    yield from (f"<li>{escape(note)}</li>" for note in results.notes)
    yield "</ul>\n"
    text = escape(json.dumps(results.as_json(), indent=1), quote=False)
    yield f"<details><summary>All of it as JSON</summary><pre>{text}</pre></details>\n"


def _profiles(results: Results) -> Iterator[str]:
    for target in results.targets:
        if not target.met and target.profile:
            summary = f"{escape(target.name)}: where the time goes"
            yield f"<details open><summary>{summary}</summary><pre>{escape(target.profile)}</pre></details>\n"


def _table(table: TextTable) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        kind = {"met": "met", "not met": "missed"}.get(text, "left" if column in table.text_columns else "")
        return f'<{tag} class="{kind}">{escape(text)}</{tag}>' if kind else f"<{tag}>{escape(text)}</{tag}>"

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(cell(tag, column, text) for column, text in enumerate(texts))

    heads = cells("th", table.heads)
    rows = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in table.rows)
    return f'<div class="wide"><table><tr>{heads}</tr>\n{rows}</table></div>\n'


def _plots(results: Results, table: str) -> Iterator[str]:
    if table == "Datapath":
        for family in sorted({row.family for row in results.datapath}):
            rows = [row for row in results.datapath if row.family == family]
            yield f'<p class="soft">IPv{family}: net time by the number of flows</p>'
            yield lines(_by_flows(rows), "flows", "ns per packet, net", log_x=True)
            yield f'<p class="soft">IPv{family}: gross time, as floor and net</p>'
            bars = [StackedBar(f"{row.row}, {row.flows:,}", (row.floor_ns, row.net_ns)) for row in rows if row.floor_ns]
            yield stacked_bars(bars, ("floor", "net"), "ns")
    elif table == "Several cores at once":
        for family in sorted({row.family for row in results.cores}):
            series: dict[str, list[tuple[float, float]]] = {}
            flows = [row.flows for row in results.cores if row.family == family]
            for row in results.cores:
                # Only the fewest and the most flows: there are no more colours.
                if row.family == family and row.flows in (min(flows), max(flows)):
                    series.setdefault(f"{row.row}, {row.flows:,}", []).append((row.cores, row.mpps))
            yield f'<p class="soft">IPv{family}</p>'
            yield lines(series, "cores", "million packets a second")
    elif table == "Live":
        bars = [StackedBar(f"IPv{row.family}, {row.path}", (row.pps / 1e3,)) for row in results.live]
        yield stacked_bars(bars, ("kpps",), "kpps")


def _by_flows(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Return the points of rows that have a floor and were measured with several numbers of flows."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.floor_ns:
            series.setdefault(row.row, []).append((row.flows, row.net_ns))
    return {name: sorted(points) for name, points in series.items() if len(points) > 1}
