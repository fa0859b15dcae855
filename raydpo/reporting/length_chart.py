"""A picture of the lengths of pairs: histograms of prompt, chosen, rejected and the whole, as a PNG."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

INK, MUTED, GRID, BARS, LIMIT = "#1f2933", "#667380", "#e4e7eb", "#3f7cac", "#c8553d"
_BINS = 40


def can_draw() -> bool:
    """Return whether matplotlib is installed, which draws the picture."""
    return find_spec("matplotlib") is not None


def bin_edges(lengths: Lengths, count: int = _BINS) -> list[int]:
    """Return whole numbers that bound the bins of a histogram: all bins of one width, of 1, 2 or 5 times 10**n."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    least = max(1.0, (high - low) / count)
    power = 10 ** math.floor(math.log10(least))
    width = next(int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= least)
    return list(range(low // width * width, high + width, width))


def draw(path: str, lengths: Mapping[str, Sequence[int]], unit: str, limits: Mapping[str, tuple[str, int]]) -> None:
    """Write the histograms to a PNG file, one per name.

    `limits` are marked in the histograms of the same names: the name of the option, and its value. Needs matplotlib
    (see `can_draw`), and at least one length of each name. Raises OSError or ValueError if the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
        for axes, (name, values) in zip(figure.subplots(2, 2).flat, lengths.items(), strict=True):
            _histogram(axes, name, np.asarray(values), unit, limits.get(name))
        figure.savefig(path)


def _histogram(axes: Any, name: str, lengths: Lengths, unit: str, limit: tuple[str, int] | None) -> None:
    # A few very long pairs would press all others into one bar.
    shown = int(np.quantile(lengths, 0.995))
    beyond = int((lengths > shown).sum())
    axes.hist(np.minimum(lengths, shown), bins=bin_edges(np.minimum(lengths, shown)), color=BARS, linewidth=0)
    middle, high = (int(value) for value in np.quantile(lengths, (0.5, 0.95)))
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK, pad=18)
    summary = f"median {middle:,}, 95% up to {high:,}, longest {lengths.max():,}"
    axes.text(0, 1.03, summary, transform=axes.transAxes, fontsize=8, color=MUTED)
    axes.set_xlabel(f"{unit}; the last bar has the {beyond:,} longer than {shown:,}" if beyond else unit, color=MUTED)
    if limit is not None:
        _mark_limit(axes, *limit, float((lengths > limit[1]).mean()))
    axes.set_ylabel("pairs", color=MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _mark_limit(axes: Any, name: str, limit: int, share: float) -> None:
    """Draw a limit as a line if it is not far beyond the bars, and say which share of the pairs is longer."""
    low, high = axes.get_xlim()
    text = f"{name} {limit:,}: {share:.1%} are longer"
    if limit <= 1.5 * high:
        axes.axvline(limit, color=LIMIT, linewidth=1.4)
        axes.set_xlim(low, max(high, limit * 1.04))
    axes.text(0.99, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=LIMIT)
