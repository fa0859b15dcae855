"""DPO on rows with images: five updates against TRL's trainer, with the same tiny model, processor and pictures."""

from pathlib import Path

import pytest
import torch

from raydpo.models.vision import TEXT, part_of_each
from tests.data.images.processors import KINDS
from tests.parity.image_sides import ImageSides, image_rows, own_training, trl_training
from tests.parity.trl_side import needs_trl

pytestmark = [needs_trl, pytest.mark.usefixtures("single_rank")]

METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
METRICS += ("logps/chosen", "logps/rejected", "entropy", "mean_token_accuracy")


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.whole)])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_and_weights_of_five_updates_equal_trl(kind: str, frozen: bool, tmp_path: Path) -> None:
    sides = ImageSides.make(tmp_path, kind)
    rows = image_rows(text_only=kind != "idefics3")
    theirs, log = trl_training(sides, rows, frozen=frozen)
    weights = theirs.state_dict()
    before = ImageSides.make(tmp_path / "again", kind).policy
    start = type(theirs).from_pretrained(before).state_dict()
    for share_prompts in (True, False):
        ours, lines = own_training(sides, rows, frozen=frozen, share_prompts=share_prompts)
        assert len(lines) == len(log) == 5
        for line, entry in zip(lines, log, strict=True):
            for name in METRICS:
                floor = 3e-7 * abs(entry["logps/chosen"]) if name.startswith("rewards/") else 0.0
                assert line[name] == pytest.approx(entry[name], rel=1e-4, abs=floor), (entry["step"], name)
        parts = part_of_each(theirs)
        for name, weight in ours.state_dict().items():
            torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-4, msg=name)
            if name in parts and frozen and parts[name] != TEXT:
                torch.testing.assert_close(weight, start[name], rtol=0, atol=0)
        moved = {parts[name] for name in parts if not torch.equal(weights[name], start[name])}
        assert moved == ({TEXT} if frozen else set(parts.values()))
