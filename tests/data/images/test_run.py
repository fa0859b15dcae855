"""Images in a run: what the plan knows of a model, the tokenize stage on Ray, the summary, and inspect_data."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from raydpo.cli import inspect_data
from raydpo.config import JobConfig
from raydpo.data.images import loading, store
from raydpo.data.prepare import TokenizationRequest, prepare
from raydpo.data.ray_stream import Slicing
from raydpo.data.shards import find_shards
from raydpo.errors import DataError
from raydpo.models.source import ModelSource
from raydpo.stages.plan import plan_images
from raydpo.stages.summarize import _images
from raydpo.stages.tokenize import RunData, describe_images
from tests.data.images.models import Case, row
from tests.data.images.processors import KINDS


def source(case: Case) -> ModelSource:
    folder = str(case.folder / "model")
    return ModelSource(folder, folder, None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_knows_the_processor_of_a_model(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "case", kind)
    images = plan_images(source(case), case.tokenizer, JobConfig())
    assert (images.fault, images.identity.token) == ("", case.tiny.image_token)
    assert images.identity == plan_images(source(case), case.tokenizer, JobConfig()).identity


def test_a_text_model_takes_no_images(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    images = plan_images(ModelSource(str(tiny_model), str(tiny_model), None), tokenizer, JobConfig())
    assert "takes no images" in images.fault
    assert str(tiny_model) in images.fault


def test_a_chat_template_that_only_the_processor_has_is_used(tmp_path: Path) -> None:
    case = Case(tmp_path / "case", "llava")
    template = case.folder / "model" / "chat_template.jinja"
    (case.folder / "model" / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    tokenizer = case.tokenizer
    assert not tokenizer.chat_template
    plan_images(source(case), tokenizer, JobConfig())
    assert tokenizer.chat_template == case.tiny.tokenizer.chat_template


@pytest.mark.parametrize(
    ("lacks", "reason"),
    [("PIL", r"need the package Pillow; `pip install pillow`"), ("config", "as transformers loads it, is a ")],
)
def test_what_is_missing_stops_rows_with_images_and_no_others(
    tmp_path: Path, lacks: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path / "case", "gemma3")
    if lacks == "PIL":
        monkeypatch.setattr(loading, "find_spec", lambda name: None)
    else:
        config = case.folder / "model" / "processor_config.json"
        config.write_text(json.dumps({"processor_class": "NoSuchProcessor"}))
        (case.folder / "model" / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuch"}')
    assert len(case.pairs([row("No picture")])) == 1
    with pytest.raises(DataError, match=reason):
        case.outcome(case.write([row("What?", images=["a.png"])]))


def test_inspect_data_shows_images_and_keeps_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path / "case", "qwen2_vl")
    path = case.write([row("What?", images=["a.png"]), row("What?", images=["gone.png"])])
    options = ["--cache_dir", str(tmp_path / "cache"), "--png", "none"]
    assert inspect_data.main([str(path), "--model_name_or_path", str(case.folder / "model"), *options]) == 0
    shown = capsys.readouterr().out
    assert "<|vision_start|><|image_pad|><|image_pad|>" in shown
    assert "image not found" in shown
    assert not (tmp_path / "cache").exists()
    assert inspect_data.main([str(path), *options]) == 0
    assert "images: 1" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_local")
def test_the_tokenize_stage_counts_images_and_the_second_run_processes_none(tmp_path: Path) -> None:
    case = Case(tmp_path / "case", "idefics3")
    for shard in range(2):
        rows = [row(f"{shard} {number}?", images=["a.png", "b.png"][: number % 3]) for number in range(6)]
        (case.folder / f"{shard}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in rows))
    shards = find_shards([str(case.folder / "*.jsonl")], "train")

    def run() -> Any:
        return prepare(shards, TokenizationRequest(case.tokenizer, Slicing(block_pairs=3), case.recipe()))

    first, second = run(), run()
    assert (first.pairs, first.images.read, first.images.distinct) == (12, 12, 2)
    assert 2 <= first.images.processed <= 8  # tasks that run at the same time may process the same picture
    assert len(store.digests(str(case.folder / "cache"))) == 2
    assert second == first
    assert (second.rows_reused, second.images.read, second.images.processed) == (12, 12, 0)
    data = RunData(second, {"": first})
    counts = {"read": 24, "distinct": 2, "processed": first.images.processed, "reused": 24 - first.images.processed}
    assert _images(data) == {"images": counts}
    assert describe_images(second.images) == ", 12 images (2 different, 0 processed now)"
    assert _images(RunData(SimpleNamespace(images=type(first.images)()), {})) == {}  # type: ignore[arg-type]
