"""The picture of lengths: its bins, and the limits that are marked."""

from pathlib import Path

import numpy as np
import pytest

from raydpo.reporting.length_chart import bin_edges, can_draw, draw


@pytest.mark.parametrize("lengths", [[1], [5, 5], [0, 1, 2, 3], [7, 40], range(1, 1000), [3, 100_000], [995, 1005]])
def test_every_length_is_in_a_bin_of_a_round_width(lengths: list[int]) -> None:
    edges = bin_edges(np.array(lengths))
    widths = set(np.diff(edges))
    assert len(widths) == 1
    assert int(str(widths.pop()).rstrip("0") or 1) in (1, 2, 5)
    assert edges[0] <= min(lengths)
    assert max(lengths) < edges[-1]
    assert len(edges) <= 42


def test_the_share_of_longer_pairs_is_written_at_the_limit(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    assert can_draw()
    lengths = {"prompt": [1, 2, 3, 4], "chosen": [5] * 4, "rejected": [6] * 4, "all": [10, 20, 30, 40]}
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # so that words stay words
        draw(str(tmp_path / "chart.svg"), lengths, "tokens", {"all": ("max_length", 30)})
    text = (tmp_path / "chart.svg").read_text()
    assert "max_length 30: 25.0% are longer" in text
    assert text.count("are longer") == 1
    assert "median 25, 95% up to 38, longest 40" in text
