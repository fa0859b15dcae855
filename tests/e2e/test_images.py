"""A whole run on rows with images: ZeRO-3 on two workers against TRL's trainer, a second run, and the model written."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from raydpo.data.images.store import read
from tests.e2e.jobs import Run, run_job, write_rows
from tests.parity.image_sides import OPTIONS, ImageSides, image_rows, trl_training
from tests.parity.trl_side import needs_trl

pytestmark = pytest.mark.usefixtures("ray_local")
HELD_OUT = image_rows()[:4]


@needs_trl
def test_a_run_on_images_equals_trl_is_reused_and_its_model_has_its_log_probs(tmp_path: Path) -> None:
    sides = ImageSides.make(tmp_path, "qwen2_vl")
    rows = image_rows()
    folder = sides.case.folder

    def run(name: str) -> Run:
        return run_job(
            tmp_path / name,
            **OPTIONS
            | {
                "model_name_or_path": str(sides.policy),
                "reference_model": str(sides.reference),
                "dataset_name": write_rows(folder / "rows.jsonl", rows),
                "eval_dataset_name": write_rows(folder / "held-out.jsonl", HELD_OUT),
                "eval_strategy": "epoch",
                "cache_dir": str(tmp_path / "cache"),
                "train_sampling_strategy": "sequential",
                "per_device_train_batch_size": 2,
                "tokens_per_micro_batch": 100,
                "num_workers": 2,
                "zero_stage": 3,
            },
        )

    first = run("first")
    _, log = trl_training(sides, rows, frozen=True)
    assert len(first.lines) == len(log) == 5
    for line, entry in zip(first.lines, log, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected"):
            floor = 3e-7 * abs(entry["logps/chosen"]) if name.startswith("rewards/") else 0.0
            assert line[name] == pytest.approx(entry[name], rel=1e-4, abs=floor), (entry["step"], name)
    images = first.summary["rows"]["images"]
    assert (images["distinct"], images["processed"]) == (2, 2)

    second = run("second")
    assert second.summary["rows"]["images"]["processed"] == 0
    assert second.summary["reference"]["completions_scored"] == 0
    assert [line["loss"] for line in second.lines] == [line["loss"] for line in first.lines]

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "first" / "model").eval()
    start = AutoModelForImageTextToText.from_pretrained(sides.policy)
    assert torch.equal(model.model.visual.patch_embed.proj.weight, start.model.visual.patch_embed.proj.weight)
    last = [line for line in first.all_lines() if "eval_loss" in line][-1]
    assert chosen_logps(model, sides, tmp_path / "cache") == pytest.approx(last["eval_logps/chosen"], rel=1e-5)
    assert chosen_logps(start, sides, tmp_path / "cache") != pytest.approx(last["eval_logps/chosen"], rel=1e-3)


def chosen_logps(model: torch.nn.Module, sides: ImageSides, cache_dir: Path) -> float:
    """Return the mean log-prob of the chosen completions of HELD_OUT by transformers alone, one sequence at a time."""
    total = 0.0
    for pair in sides.pairs(HELD_OUT):
        ids = torch.tensor([[*pair.prompt_ids.tolist(), *pair.chosen_ids.tolist()]])
        arguments = {}
        if pair.images:
            arrays = [read(str(cache_dir), digest) for digest in pair.images]
            arguments = {
                name: torch.cat([torch.from_numpy(array[name]) for array in arrays])
                for name in ("pixel_values", "image_grid_thw")
            }
            arguments["mm_token_type_ids"] = (ids == sides.case.tiny.image_token_id).int()
        with torch.no_grad():
            logps = model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments).logits[0].log_softmax(-1)
        start = len(pair.prompt_ids)
        total += float(logps[start - 1 : -1].gather(1, ids[0, start:, None]).sum())
    return total / len(HELD_OUT)
