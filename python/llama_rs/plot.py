"""A picture of a server's measurements: its throughput against what the slowest of a hundred wait for.

SVG, written by hand: a plot of ten points needs no library. It has one panel for each time, with the rounds from left
to right by how much they yield; where the line turns up, more clients make answers later and no more of them.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .perf import Load

PANELS = (
    ("first_token_seconds", "to the first token, p99, ms"),
    ("inter_token_seconds", "between tokens, p99, ms"),
    ("request_seconds", "of a whole request, p99, ms"),
)
WIDTH, HEIGHT = 340, 260
"""Of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 34, 44
"""What its axes leave of it."""
TICKS = 5
STYLE = "text{font:11px sans-serif;fill:#333}.grid{stroke:#ddd}.line{fill:none;stroke:#1a5fb4;stroke-width:1.5}"


def svg(loads: list[Load], title: str) -> str:
    """The picture of some rounds."""
    rounds = sorted(
        ((load.tokens_per_second, load.name, load.summary()) for load in loads if load.good), key=lambda of: of[:2]
    )
    panels = [
        _panel(i * WIDTH, text, [(x, _p99(of[key]), name) for x, name, of in rounds])
        for i, (key, text) in enumerate(PANELS)
    ]
    width, height = WIDTH * len(PANELS), HEIGHT + 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/><text x="12" y="18">{escape(title)}</text>',
            '<g transform="translate(0 24)">',
            *panels,
            "</g></svg>",
            "",
        ]
    )


def _p99(quantiles: Any) -> float | None:
    value = quantiles["p99"]
    return None if value is None else 1000 * float(value)


def _panel(at: int, text: str, points: list[tuple[float, float | None, str]]) -> str:
    """Milliseconds over tokens per second, a point for each round."""
    known = [(x, y, name) for x, y, name in points if y is not None]
    across, up = _ticks(max((x for x, _, _ in known), default=1.0)), _ticks(max((y for _, y, _ in known), default=1.0))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[str, str]:
        return f"{LEFT + wide * x / across[-1]:.1f}", f"{TOP + high * (1 - y / up[-1]):.1f}"

    parts = [f'<g transform="translate({at} 0)"><text x="{LEFT}" y="{TOP - 12}">{text}</text>']
    for y in up:
        _, py = place(0, y)
        parts.append(f'<path class="grid" d="M{LEFT} {py}h{wide}"/><text x="{LEFT - 6}" y="{py}" dy="4" ')
        parts[-1] += f'text-anchor="end">{y:g}</text>'
    for x in across:
        px, _ = place(x, 0)
        parts.append(f'<text x="{px}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 10}" text-anchor="middle">tokens per second</text>')
    places = [(*place(x, y), name) for x, y, name in known]
    parts.append(f'<polyline class="line" points="{" ".join(f"{px},{py}" for px, py, _ in places)}"/>')
    for px, py, name in places:
        parts.append(f'<circle cx="{px}" cy="{py}" r="3" fill="#1a5fb4"/>')
        parts.append(f'<text x="{px}" y="{py}" dx="-6" dy="-6" text-anchor="end">{escape(name)}</text>')
    return "".join([*parts, "</g>"])


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least ``most``."""
    if most <= 0:
        return [0.0, 1.0]
    raw = most / TICKS
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * n for n in (1, 2, 2.5, 5, 10) if unit * n >= raw * (1 - 1e-9))
    return [float(f"{step * i:.12g}") for i in range(ceil(most / step - 1e-9) + 1)]
