"""jobs/inspect_data.py: what it prints of rows, with a model and without, and what it says of data it cannot use."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from raydpo.cli import inspect_data
from raydpo.cli.inspect_data import main, parse_arguments
from raydpo.errors import ConfigError
from raydpo.reporting import length_chart
from tests.data.seq2seq_tokenizers import BART, build_seq2seq_tokenizer
from tests.models.seq2seq_models import CORE

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the program in a folder of its own, and returns exit status and output."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str]:
        status = main([str(word) for word in (*words, "--cache_dir", tmp_path / "cache")])
        assert not (tmp_path / "cache").exists(), "nothing is written but the picture"
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def chat(question: str, good: str, bad: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": good}],
        "rejected": [{"role": "assistant", "content": bad}],
    }


def section(text: str, label: str) -> str:
    """Return the lines of a label up to the next one, without the bars around each line."""
    after = text.split(f"\n{label:<12} ", 1)[1]
    lines = re.split(r"\n(?=\S)", after)[0].split("\n")
    return "\n".join(line.strip() for line in lines)


def test_a_row_is_shown_as_the_model_sees_it(
    tmp_path: Path, tiny_model: Path, printed: Callable[..., tuple[int, str]]
) -> None:
    rows = write(tmp_path / "rows.jsonl", chat("Why?\nTell me.", "So.", "No idea."), *[chat("a", "b", "c")] * 4)
    status, text = printed(rows, "--model_name_or_path", tiny_model)
    assert status == 0
    assert "Rows         5 read (dialect preference) = 5 pairs + 0 to quarantine" in text
    assert text.count("-- row ") == 3
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for label, content in (
        ("prompt", "<user>Why?\nTell me.<assistant>"),
        ("chosen", "So.<eos>"),
        ("rejected", "No idea.<eos>"),
    ):
        ids = tokenizer(content, add_special_tokens=False)["input_ids"]
        found = section(text, label)
        assert found.startswith(f"[{len(ids)} tokens]")
        shown = "|" + content.replace("\n", "⏎\n|") + "|"
        assert shown in found
        if len(ids) <= 12:
            assert f"ids {' '.join(map(str, ids))}" in found
        else:
            assert f"ids {' '.join(map(str, ids[:8]))} ... {' '.join(map(str, ids[-4:]))}" in found


def test_what_truncation_removes_is_told(
    tmp_path: Path, tiny_model: Path, printed: Callable[..., tuple[int, str]]
) -> None:
    rows = write(tmp_path / "rows.jsonl", chat("abcdef", "0123456789", "xy"), chat("0" * 30, "a", "b"))
    limits = ("--max_length", "12", "--model_name_or_path", tiny_model, "--png", "none")
    status, text = printed(rows, *limits)
    assert status == 0
    # <user>abcdef<assistant> is 8 tokens of this byte-level tokenizer, so that 4 are left for the completions.
    assert "|0123|" in section(text, "chosen")
    assert "|xy<eos>|" in section(text, "rejected")
    assert "truncation removes the last 7 of 11 tokens of chosen: '456789<eos>'" in text
    assert "Truncated    1 pairs" in text
    assert "1 prompt too long, first in row 2 of rows.jsonl: prompt too long: its 32 tokens leave no room" in text
    _, text = printed(rows, *limits, "--max_prompt_length", "5")
    assert "|cdef<assistant>|" in section(text, "prompt").replace("\n", "")
    assert "truncation removes the first 3 of 8 tokens of prompt: '<user>ab'" in text


def test_bad_rows_are_told_by_kind_with_an_example(
    tmp_path: Path, tiny_model: Path, printed: Callable[..., tuple[int, str]]
) -> None:
    rows = [chat("a", "b", "c"), {"prompt": "p", "chosen": "x"}, "{", {"prompt": "p", "chosen": "y"}]
    path = write(tmp_path / "rows.jsonl", *rows)
    for model in ((), ("--model_name_or_path", tiny_model)):
        status, text = printed(path, *model)
        assert status == 0
        assert "4 read (dialect preference) = 1 pairs + 3 to quarantine" in text
        assert "Quarantine   2 missing column, first in row 2 of rows.jsonl: missing column: 'rejected'" in text
        assert """row: {"prompt": "p", "chosen": "x"}""" in text
        assert "Quarantine   1 broken JSON, first in row 3" in text


def test_without_a_model_the_canonical_pair_is_shown(tmp_path: Path, printed: Callable[..., tuple[int, str]]) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {"q": "é"}}}]}
    row = {"conversations": [{"from": "human", "value": "hello"}], "chosen": {"from": "gpt", "value": "good"}}
    row["rejected"] = {"from": "gpt", "value": "bad"}
    path = write(tmp_path / "rows.jsonl", row)
    status, text = printed(path)
    assert status == 0
    assert "dialect sharegpt" in text
    assert "|[user] hello|" in section(text, "prompt")
    assert "[16 characters]" in section(text, "chosen")
    assert "|[assistant] good|" in section(text, "chosen")
    assert "--model_name_or_path" in text
    path = write(tmp_path / "calls.jsonl", {**chat("a", "b", "c"), "chosen": [call]})
    assert '"name": "find", "arguments": {"q": "é"}' in section(printed(path)[1], "chosen")


def test_the_rows_to_print_and_to_read_can_be_limited(tmp_path: Path, printed: Callable[..., tuple[int, str]]) -> None:
    path = write(tmp_path / "rows.jsonl", *[chat(f"q{i}", "a", "b") for i in range(9)])
    status, text = printed(path, "--rows", "1", "--max_rows", "4", "--png", "none")
    assert status == 0
    assert text.count("-- row ") == 1
    assert "4 read" in text
    assert printed(path, "--rows=0")[1].count("-- row ") == 0


def test_files_without_a_usable_row_are_one_line_each_and_the_others_are_shown(
    tmp_path: Path, tiny_model: Path, printed: Callable[..., tuple[int, str]]
) -> None:
    rows = [{"prompt": f"p{i}", "response_0": "a", "response_1": "b", "better_response_id": 0} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", chat("a", "b", "c"))
    write(tmp_path / "c.jsonl")
    files = [tmp_path / name for name in ("a.parquet", "b.jsonl", "c.jsonl")]
    status, text = printed(*files, "--model_name_or_path", tiny_model)
    assert status == 1
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith(
        "error: none of its 5 rows (dialect preference) can be trained on; row 1: missing column: 'chosen'"
    )
    assert errors[0].count("missing column") == text.count("missing column: ") == 1, "the reason is said once per file"
    assert errors[1] == "error: the file has no rows"
    assert "1 read (dialect preference) = 1 pairs" in text
    assert "== all files" in text
    assert "6 read (dialect preference) = 1 pairs + 5 to quarantine" in text


def test_a_tokenizer_that_lacks_what_rows_need_is_one_line(
    tmp_path: Path, tiny_model: Path, printed: Callable[..., tuple[int, str]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    status, text = printed(
        write(tmp_path / "rows.jsonl", chat("a", "b", "c")), "--model_name_or_path", tmp_path / "base"
    )
    assert status == 1
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "has no chat template" in error


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, printed: Callable[..., tuple[int, str]]) -> None:
    row = {"prompt": "p:", "chosen": "\x1b[2J red \x00", "rejected": "tab\there\r"}
    _, text = printed(write(tmp_path / "rows.jsonl", row))
    assert r"|\x1b[2J red \x00|" in text
    assert r"|tab\there\r|" in text
    assert "\x1b" not in text


def test_the_picture_is_written_and_its_path_printed(tmp_path: Path, printed: Callable[..., tuple[int, str]]) -> None:
    pytest.importorskip("matplotlib")
    path = write(tmp_path / "rows.jsonl", *[chat("q" * i, "a" * i, "b" * (i + 1)) for i in range(1, 30)])
    _, text = printed(path)
    assert f"Picture      {tmp_path}/lengths.png" in text
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    _, text = printed(path, "--png", tmp_path / "other.png")
    assert (tmp_path / "other.png").exists()
    status, text = printed(path, "--png", tmp_path / "none" / "other.png")
    assert status == 1
    assert "error: cannot write png=" in text


def test_without_matplotlib_all_else_is_printed(
    tmp_path: Path, printed: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(length_chart, "find_spec", lambda name: None)
    status, text = printed(write(tmp_path / "rows.jsonl", chat("q", "a", "b")))
    assert status == 0
    assert "Picture      none: it needs matplotlib; `pip install matplotlib`" in text
    assert "prompt + longer completion" in text


def test_files_and_options_are_told_apart() -> None:
    job, shown = parse_arguments(["a.jsonl", "b.jsonl", "--max_length", "50", "--rows=2", "--png", "x.png"])
    assert (job.data.dataset_name, job.data.max_length) == (("a.jsonl", "b.jsonl"), 50)
    assert (shown.rows, shown.max_rows, shown.png) == (2, None, "x.png")
    job, _ = parse_arguments(["--dataset_name", "a", "b", "--max-rows", "7"])
    assert job.data.dataset_name == ("a", "b")


def test_the_config_of_a_run_can_be_inspected(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("dataset_name: [a.jsonl]\nmax_length: 77\nbeta: 0.5\neval_strategy: steps\n")
    job, _ = parse_arguments(["--config", str(tmp_path / "run.yaml")])
    assert (job.data.dataset_name, job.data.max_length, job.optim.eval_strategy) == (("a.jsonl",), 77, "no")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no data is named; write the files after the name of the program"),
        (["a.jsonl", "--dataset_name", "b.jsonl"], "a.jsonl and dataset_name=b.jsonl both name data; name it once"),
        (["a.jsonl", "--rows", "-1"], "rows=-1 must be at least 0"),
        (["a.jsonl", "--max_rows", "1", "2"], "--max_rows takes one value"),
        (["a.jsonl", "--row", "1"], "row is not an option"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    with pytest.raises(ConfigError):
        parse_arguments(words)


def test_the_help_lists_what_has_an_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python jobs/inspect_data.py FILES")
    for name in ("dataset_format", "max_length", "model_name_or_path", "rows", "max_rows", "png"):
        assert f"\n  --{name} " in text
    assert "--beta " not in text


def test_the_commands_of_the_page_parse() -> None:
    text = (JOBS / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python jobs/inspect_data\.py (.*)", text, re.MULTILINE)
    assert commands
    for command in commands:
        parse_arguments(shlex.split(command))


def test_ray_is_not_started(
    tmp_path: Path, printed: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ray is not needed")

    monkeypatch.setattr("ray.init", unexpected)
    assert inspect_data.main([str(write(tmp_path / "rows.jsonl", chat("q", "a", "b"))), "--png", "none"]) == 0


def test_an_encoder_decoder_reads_prompt_and_completion_apart(
    tmp_path: Path, printed: Callable[..., tuple[int, str]]
) -> None:
    build_seq2seq_tokenizer(BART).save_pretrained(tmp_path / "bart")
    CORE["bart"]().save_pretrained(tmp_path / "bart")
    file = write(tmp_path / "pairs.jsonl", {"prompt": "sum: one", "chosen": "two", "rejected": "three"})
    limits = ("--is_encoder_decoder", "--max_prompt_length", 6, "--max_completion_length", 6)
    status, text = printed(file, "--model_name_or_path", tmp_path / "bart", *limits)
    assert status == 0
    assert "<s>sum:</s>" in text
    assert "<s>thre</s>" in text
    assert "truncation removes the last 4 of 10 tokens of prompt: ' one'" in text
