# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG, by nothing but text: colours are CSS variables of the page, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 64, 36, 12, 40
"""Pixels of the drawing and its margins."""
HEIGHT = 300
COLOURS = 6
"""Of the page: --c0 … --c5."""


@dataclass(frozen=True)
class Bars:
    """One bar of :func:`stacked_bars`: what it is made of, from the left."""

    label: str
    pieces: Sequence[float]


def stacked_bars(bars: Sequence[Bars], names: Sequence[str], unit: str) -> str:
    """Draw horizontal bars, one below the other; `names` are those of the pieces."""
    if not bars:
        return ""
    row, label_width = 22, 190
    top = max(sum(max(piece, 0) for piece in bar.pieces) for bar in bars) or 1.0
    scale = (WIDTH - label_width - 70) / top
    parts: list[str] = []
    for place, bar in enumerate(bars):
        y, x = place * row + 4, float(label_width)
        parts.append(_text(label_width - 8, y + 12, bar.label, "end"))
        for number, piece in enumerate(bar.pieces):
            width = max(piece, 0) * scale
            title = f"{bar.label}: {names[number]} {piece:.1f} {unit}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{row - 7}" class="f{number}">'
                f"<title>{escape(title)}</title></rect>"
            )
            x += width
        parts.append(_text(x + 5, y + 12, f"{sum(bar.pieces):.0f}"))
    return _legend(names) + _svg("".join(parts), len(bars) * row + 8)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str, *, log_x: bool = False) -> str:
    """Draw a line through the (x, y) points of each series; y begins at 0."""
    points = [point for each in series.values() for point in each]
    if not points:
        return ""
    xs = sorted({x for x, _ in points})
    top = _round_up(max(y for _, y in points))

    def place(x: float) -> float:
        low, high, at = (math.log10(v) for v in (xs[0], xs[-1], x)) if log_x else (xs[0], xs[-1], x)
        share = (at - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def rise(y: float) -> float:
        return HEIGHT - BOTTOM - max(y, 0) / top * (HEIGHT - TOP - BOTTOM)

    parts = [*_grid(top, rise), *(_text(place(x), HEIGHT - BOTTOM + 16, f"{x:,.0f}", "middle") for x in xs)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle"))
    for number, (name, each) in enumerate(series.items()):
        path = " ".join(f"{place(x):.1f},{rise(y):.1f}" for x, y in each)
        parts.append(f'<polyline points="{path}" class="s{number % COLOURS}"/>')
        for x, y in each:
            title = escape(f"{name}: {y:,.4g} {y_name} at {x:,.0f} {x_name}")
            parts.append(
                f'<circle cx="{place(x):.1f}" cy="{rise(y):.1f}" r="4" class="f{number % COLOURS}">'
                f"<title>{title}</title></circle>"
            )
    return _legend(list(series)) + f'<p class="axis">{escape(y_name)}</p>' + _svg("".join(parts), HEIGHT)


def _grid(top: float, rise: object) -> Iterable[str]:
    assert callable(rise)
    for step in range(5):
        value = top * step / 4
        y = rise(value)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield _text(LEFT - 8, y + 4, f"{value:,.4g}", "end")


def _round_up(value: float) -> float:
    """The next number that divides well by four."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * unit >= value * 0.999)


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<span><i class="k{number % COLOURS}"></i>{escape(name)}</span>' for number, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def _svg(content: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{content}</svg>'
