# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG text. Colours are CSS classes of the page, so plots follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 64, 36, 12, 40
"""Pixels of the drawing and its margins."""
HEIGHT = 300
COLOURS = 6
"""Number of the page's colours: --c0 … --c5."""


@dataclass(frozen=True)
class StackedBar:
    """One bar of :func:`stacked_bars`, with its pieces from the left."""

    label: str
    pieces: Sequence[float]


def stacked_bars(bars: Sequence[StackedBar], names: Sequence[str], unit: str) -> str:
    """Draw horizontal bars, one below the other; `names` are the names of the pieces."""
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
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    xs = sorted({x for x, _ in points})
    top = _round_up(max(y for _, y in points))

    def pixel_x(x: float) -> float:
        low, high, value = (math.log10(v) for v in (xs[0], xs[-1], x)) if log_x else (xs[0], xs[-1], x)
        share = (value - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def pixel_y(y: float) -> float:
        return HEIGHT - BOTTOM - max(y, 0) / top * (HEIGHT - TOP - BOTTOM)

    parts = [*_grid(top, pixel_y), *(_text(pixel_x(x), HEIGHT - BOTTOM + 16, f"{x:,.0f}", "middle") for x in xs)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle"))
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(f"{pixel_x(x):.1f},{pixel_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" class="s{number % COLOURS}"/>')
        for x, y in line:
            title = escape(f"{name}: {y:,.4g} {y_name} at {x:,.0f} {x_name}")
            parts.append(
                f'<circle cx="{pixel_x(x):.1f}" cy="{pixel_y(y):.1f}" r="4" class="f{number % COLOURS}">'
                f"<title>{title}</title></circle>"
            )
    return _legend(list(series)) + f'<p class="axis">{escape(y_name)}</p>' + _svg("".join(parts), HEIGHT)


def _grid(top: float, pixel_y: Callable[[float], float]) -> Iterable[str]:
    for step in range(5):
        value = top * step / 4
        y = pixel_y(value)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield _text(LEFT - 8, y + 4, f"{value:,.4g}", "end")


def _round_up(value: float) -> float:
    """Return the next higher round number that divides well by four: the grid has four steps."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * unit >= value * 0.999)


def _text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<span><i class="k{number % COLOURS}"></i>{escape(name)}</span>' for number, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


def _svg(content: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{content}</svg>'
