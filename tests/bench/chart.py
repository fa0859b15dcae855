"""Draws a horizontal bar chart as SVG text, on its own background, so that it is readable on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, MARGIN, LABELS, VALUES = 760, 24, 178, 150
BAR, GAP, HEADING, TITLE = 22, 8, 40, 66
CARD, EDGE, INK, FAINT = "#ffffff", "#d0d7de", "#1f2328", "#656d76"
PLAIN, ACCENT = "#a9b4c0", "#1f6feb"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Bar:
    """One bar, with its label, value and spread."""

    label: str
    value: float
    text: str
    """Text after the bar."""
    low: float
    high: float
    """`low` and `high` are the ends of the line that shows the spread."""
    accent: bool = False


@dataclass(frozen=True)
class Group:
    """Bars on one scale, which starts at 0."""

    heading: str
    bars: Sequence[Bar]


def draw(title: str, subtitle: str, groups: Sequence[Group]) -> str:
    """Return the chart as SVG text; each group has its own scale."""
    parts, top = [], MARGIN + TITLE
    for group in groups:
        parts.append(_text(MARGIN, top + 16, group.heading, size=15, weight=600))
        top += HEADING - 10
        largest = max(bar.high for bar in group.bars)
        for bar in group.bars:
            parts.extend(_bar(bar, top, (WIDTH - 2 * MARGIN - LABELS - VALUES) / largest))
            top += BAR + GAP
        top += 14
    height = top + MARGIN - 14
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="{FONT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" fill="{CARD}" stroke="{EDGE}"/>',
        _text(MARGIN, MARGIN + 18, title, size=18, weight=600),
        _text(MARGIN, MARGIN + 40, subtitle, size=12, fill=FAINT),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _bar(bar: Bar, top: float, scale: float) -> list[str]:
    left, middle, width = MARGIN + LABELS, top + BAR / 2, bar.value * scale
    fill, weight = (ACCENT, 600) if bar.accent else (PLAIN, 400)
    after = left + max(width, bar.high * scale) + 8
    return [
        _text(left - 10, middle + 4.5, bar.label, size=13, weight=weight, anchor="end"),
        f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{BAR}" rx="3" fill="{fill}"/>',
        f'<path d="M{left + bar.low * scale:.1f} {middle}H{left + bar.high * scale:.1f}" stroke="{INK}" '
        'stroke-width="1.5"/>',
        _text(after, middle + 4.5, bar.text, size=13, weight=weight),
    ]


def _text(
    x: float, y: float, text: str, *, size: int, weight: int = 400, fill: str = INK, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
