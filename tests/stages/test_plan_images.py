"""What a plan gives scorers and train workers of a vision-language model: images, frozen parts and log-probs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText

from raydpo.batching.collate import collate
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.block import ScoredBlock, TokenizedBlock
from raydpo.data.images.store import read
from raydpo.models.vision import PROJECTOR, TEXT, TOWER, part_of_each
from raydpo.reference.scorer import Scorer
from raydpo.stages.plan import RunPlan, plan_run
from raydpo.stages.score import reference_store, scorer_spec
from raydpo.training.policy import build_policy
from tests.parity.image_sides import ImageSides, image_rows
from tests.stages.plan_helpers import CPU_NODE, job_of


def plan_of(sides: ImageSides, folder: Path, **options: Any) -> RunPlan:
    job = job_of(sides.policy, folder, cache_dir=str(sides.case.folder / "cache"), **options)
    return plan_run(job, [CPU_NODE])


def task_of(plan: RunPlan) -> Any:
    """Return the part of a train task from which the policy is built."""
    return SimpleNamespace(job=plan.job, policy=plan.policy, deepspeed_config=plan.deepspeed_config)


def own_logps(sides: ImageSides, prompt: Any, completion: Any, images: tuple[str, ...]) -> Any:
    """Return the log-probs [tokens] of a completion by transformers alone."""
    model = AutoModelForImageTextToText.from_pretrained(sides.policy).eval()
    ids = torch.from_numpy(np.concatenate([prompt, completion]))[None]
    arguments: dict[str, Any] = {}
    if images:
        arrays = [read(str(sides.case.folder / "cache"), digest) for digest in images]
        for name in ("pixel_values", "image_grid_thw"):
            arguments[name] = torch.cat([torch.from_numpy(array[name]) for array in arrays])
        arguments["mm_token_type_ids"] = (ids == sides.case.tiny.image_token_id).int()
    with torch.no_grad():
        logps = model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments).logits[0].log_softmax(-1)
    start = len(prompt)
    return logps[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0].numpy()


def test_scorer_and_policy_of_a_plan_give_images_the_log_probs_of_the_own_forward(tmp_path: Path) -> None:
    sides = ImageSides.make(tmp_path, "qwen2_vl")
    plan = plan_of(sides, tmp_path, tokens_per_micro_batch=120, gradient_checkpointing=True)
    block = sides.case.outcome(sides.case.write(image_rows()[:8])).block
    assert block is not None
    store = reference_store(plan)
    assert store is not None
    scorer = Scorer(scorer_spec(plan))
    scorer.load()
    scorer.score_block(block, store, 120)
    scores = ScoredBlock(TokenizedBlock(block), pq.read_table(store.url(block)), store.url(block))
    pairs = [TokenizedBlock(block).pair(row) for row in range(8)]
    assert sum(bool(pair.images) for pair in pairs) == 6

    policy, _ = build_policy(task_of(plan))
    for row, pair in enumerate(pairs):
        scored = scores.pair(row)
        expected = own_logps(sides, pair.prompt_ids, pair.chosen_ids, pair.images)
        np.testing.assert_allclose(scored.ref_chosen_logps, expected, rtol=1e-5, atol=1e-5)
        batch = collate(build_prompt_trees([pair], 10**6), [pair])
        logps = policy(batch)[0].detach().numpy()[batch.target_index]
        np.testing.assert_allclose(logps[: len(expected)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {TEXT}),
        ({"freeze_multi_modal_projector": False}, {TEXT, PROJECTOR}),
        ({"freeze_vision_tower": False, "freeze_multi_modal_projector": False}, {TEXT, PROJECTOR, TOWER}),
        ({"use_peft": True}, {TEXT}),
        ({"use_peft": True, "lora_target_modules": "q_proj,qkv", "freeze_vision_tower": False}, {TEXT, TOWER}),
    ],
)
def test_a_train_worker_trains_the_parts_that_the_options_name(
    options: dict[str, Any], trained: set[str], tmp_path: Path
) -> None:
    plan = plan_of(ImageSides.make(tmp_path, "qwen2_vl"), tmp_path, **options)
    policy, _ = build_policy(task_of(plan))
    parts = part_of_each(policy.causal_lm)
    found = {parts[name] for name, weight in policy.causal_lm.named_parameters() if weight.requires_grad}
    assert found == trained
