"""Tests of the benchmark's data, arithmetic, checks and chart; the measurements themselves run with `make bench`."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.bench import chart, data, stats, targets
from tests.bench.measure import gate, memory
from tests.bench.measure.sides import ROOT


@pytest.mark.parametrize("name", data.PROFILES)
def test_lengths_have_the_means_of_their_profile_in_every_group(name: str) -> None:
    profile = data.PROFILES[name]
    drawn = data.lengths(profile, 10 * data.GROUP, seed=1)
    assert drawn.reshape(10, data.GROUP, 3).mean(axis=1) == pytest.approx(np.tile(profile.means, (10, 1)), rel=0.02)
    assert (drawn[:, 0] + drawn[:, 1:].max(axis=1)).max() <= data.MAX_LENGTH
    assert drawn.min() >= 2
    assert (drawn != data.lengths(profile, 10 * data.GROUP, seed=2)).any()


def test_the_tokenizer_makes_one_token_per_word(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    profile = data.PROFILES["hh"]
    assert len(tokenizer) == data.VOCABULARY
    for row, (prompt, *completions) in zip(data.rows(profile, 16, 3), data.lengths(profile, 16, 3), strict=True):
        ids = tokenizer(row["prompt"])["input_ids"]
        assert len(ids) == prompt
        for side, tokens in zip(("chosen", "rejected"), completions, strict=True):
            full_ids = tokenizer(row["prompt"] + row[side] + data.EOS)["input_ids"]
            assert full_ids[:prompt] == ids
            assert len(full_ids) == prompt + tokens


def test_shared_and_unshared_pairs_differ_only_in_the_first_word_of_prompts() -> None:
    shared, unshared = (
        data.rows_of_shared_prompts(data.PROFILES["hh"], 32, seed=5, shared=sharing) for sharing in (True, False)
    )
    for rows, prompts in ((shared, 4), (unshared, 32)):
        assert len({row["prompt"] for row in rows}) == prompts
        assert len({row["chosen"] for row in rows} | {row["rejected"] for row in rows}) == 4 * 5
        assert len({(row["prompt"], row["chosen"], row["rejected"]) for row in rows}) == 32
    lengths = [[[len(text.split()) for text in row.values()] for row in rows] for rows in (shared, unshared)]
    assert lengths[0] == lengths[1]


def test_rates_exclude_the_first_update_and_the_first_block() -> None:
    lines = [
        {"step": 1, "pairs_per_second": 0.5},
        {"step": 10, "pairs_per_second": 4.0, "data_wait": 0.1},  # 9 updates of 16 pairs: 144 pairs in 36 s
        {"step": 12, "pairs_per_second": 8.0, "data_wait": 0.2},  # 32 pairs in 4 s
    ]
    assert stats.training_rate(lines, 16) == pytest.approx(176 / 40)
    assert stats.steady(lines, "data_wait", 16) == pytest.approx((36 * 0.1 + 4 * 0.2) / 40)
    with pytest.raises(ValueError, match="first update"):
        stats.training_rate(lines[1:], 16)
    assert stats.scoring_rate([(130.0, 50), (100.0, 48), (110.0, 48)]) == pytest.approx(98 / 30)
    with pytest.raises(ValueError, match="more pairs"):
        stats.scoring_rate([(100.0, 48)])
    assert stats.sequential_rate(6.0, 3.0) == pytest.approx(2.0)
    assert stats.sequential_rate(None, 3.0) == 3.0


def test_ratios_are_taken_within_repeats_and_spreads_keep_the_extremes() -> None:
    assert stats.Spread.of([5.0, 1.0, 3.0]) == stats.Spread(3.0, 1.0, 5.0)
    ours = [{"repeat": 1, "rate": 9.0}, {"repeat": 0, "rate": 8.0}, {"repeat": 2, "rate": 5.0}]
    theirs = [{"repeat": repeat, "rate": rate} for repeat, rate in enumerate((1.0, 3.0, 2.0))]
    ratio = targets.ratio(targets.pick(ours), targets.pick(theirs), "rate")  # 8 / 1, 9 / 3, 5 / 2
    assert ratio == stats.Spread(3.0, 2.5, 8.0)


def test_sides_that_differ_are_not_timed() -> None:
    tolerances = {"loss": 1e-4, "num_tokens": 0.0}
    theirs = [{"loss": 0.693147, "num_tokens": 10}, {"loss": 0.65, "num_tokens": 20}]
    near = [theirs[0], {**theirs[1], "loss": 0.65 * 1.00005}]
    assert gate.compare(near, theirs, "default", tolerances)["loss"] == pytest.approx(5e-5, rel=0.01)
    for other in ({"loss": 0.651}, {"num_tokens": 21}):
        with pytest.raises(gate.SidesDiffer, match="of update 2"):
            gate.compare([theirs[0], {**theirs[1], **other}], theirs, "default", tolerances)
    with pytest.raises(gate.SidesDiffer, match="hardly leave"):
        gate.compare(theirs[:1], theirs[:1], "default", tolerances)


def test_memory_of_a_command_and_of_its_child_processes_is_measured(tmp_path: Path) -> None:
    child = "import time; held = bytearray(b'x' * (80 << 20)); time.sleep(1.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, 'the-child'])"
    watched = memory.watch([sys.executable, "-c", parent], tmp_path / "log", env={})
    assert 80 << 20 < watched.peaks.of("the-child", "bytearray") < 200 << 20
    assert watched.peaks.own[watched.root] < 80 << 20 < watched.peaks.together
    with pytest.raises(memory.CommandFailed, match="status 3:\nwhy"):
        memory.watch([sys.executable, "-c", "print('why'); exit(3)"], tmp_path / "log", env={})


def test_the_chart_is_xml_with_proportional_bars() -> None:
    bars = [chart.Bar("TRL <default>", 1.0, "1.00", 0.9, 1.1), chart.Bar("raydpo", 4.0, "4.00", 3.9, 4.0, accent=True)]
    root = ElementTree.fromstring(chart.draw("A & B", "machine", [chart.Group("HH", bars), chart.Group("long", bars)]))
    drawn = [part for part in root.iter("{http://www.w3.org/2000/svg}rect") if part.get("height") == str(chart.BAR)]
    widths = [float(part.get("width", 0)) for part in drawn]
    assert len(widths) == 4
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)
    assert all(0 <= float(part.get("y", 0)) <= float(root.get("height", 0)) for part in drawn)


def test_help_and_invalid_sizes_exit_without_a_run() -> None:
    def run_bench(*flags: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.bench", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert "--repeats" in run_bench("--help").stdout
    assert "multiple of the global batch, 16" in run_bench("--pairs", "50").stderr


def test_rows_are_written_as_json_lines(tmp_path: Path) -> None:
    rows = data.rows(data.PROFILES["long"], 3, seed=0)
    assert [json.loads(line) for line in data.write_rows(tmp_path / "rows", rows).read_text().splitlines()] == rows
