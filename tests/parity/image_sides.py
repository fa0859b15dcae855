"""Tiny vision-language models with their processors, trained on rows with images by TRL and in this process."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, get_scheduler

from raydpo.batching.collate import collate, collate_scored, split_by_completion
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import ScoredPair, TokenizedPair
from raydpo.config import LossConfig
from raydpo.feed.batches import RankBatch
from raydpo.models.attention.choice import choose
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.images.reader import ImageReader
from raydpo.models.loading import load_causal_lm, load_config
from raydpo.models.source import resolve_model
from raydpo.models.vision import freeze
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.step import Objective, train_micro_batches
from tests.data.images.models import Case, row
from tests.models.vision_models import vision_model
from tests.training.ranks import Engine

BATCH, UPDATES = 4, 5
OPTIONS: dict[str, Any] = {
    "beta": 0.3,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": BATCH,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
}
ANSWERS = ("A cat.", "Two dogs!", "Red.", "It is a bird, I think.", "None?")


def image_rows(*, text_only: bool = True) -> list[dict[str, Any]]:
    """Return the rows of five updates: with one image, two images, the same image as another row, and without any."""
    images = [["a.png"], ["b.png"], ["a.png", "b.png"], ["a.png"] if not text_only else []]
    rows = []
    for number in range(BATCH * UPDATES):
        answers = (ANSWERS[number % 5], ANSWERS[(number // 2 + 3) % 5] + " No.")
        rows.append(row(f"{number % 7}: what is it?", answers, images=images[number % 4]))
    return rows


@dataclass(frozen=True)
class ImageSides:
    """A model's folder with a processor, a reference that differs from it, and rows with pictures."""

    case: Case
    policy: Path
    reference: Path

    @staticmethod
    def make(folder: Path, kind: str) -> "ImageSides":
        """Write all files."""
        case = Case(folder / "case", kind)
        tiny = case.tiny
        tokens = {
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
            "video_token_id": "<|video_pad|>",
        }
        ids = {name: tiny.token_id(token) for name, token in tokens.items()} if kind == "qwen2_vl" else {}
        options = {"vocabulary": tiny.vocab_size, "image": tiny.image_token_id, **ids}
        sides = ImageSides(case, folder / "case" / "model", folder / "reference")
        model = vision_model(kind, **options)
        model.save_pretrained(sides.policy)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(sides.reference)
        tiny.save(sides.reference)
        return sides

    def pairs(self, rows: Sequence[dict[str, Any]]) -> list[TokenizedPair]:
        """Return the rows tokenized; the tensors of their images are in `case.folder`/cache."""
        return self.case.pairs(list(rows))


def trl_training(sides: ImageSides, rows: Sequence[dict[str, Any]], *, frozen: bool) -> tuple[Any, list[Any]]:
    """Train with TRL; return the model and the log, one entry per update. `frozen`: tower and projector are."""
    import trl
    from datasets import Dataset

    policy = AutoModelForImageTextToText.from_pretrained(sides.policy, dtype=torch.float32)
    freeze(policy, tower=frozen, projector=frozen)
    opened = [{**entry, "images": [Image.open(sides.case.folder / name) for name in entry["images"]]} for entry in rows]
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=AutoModelForImageTextToText.from_pretrained(sides.reference, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=str(sides.case.folder / "trl"),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            dataloader_pin_memory=False,
            max_length=None,
            train_sampling_strategy="sequential",
            **OPTIONS,
        ),
        processing_class=copy.deepcopy(sides.case.tiny.processor),
        train_dataset=Dataset.from_list(opened),
    )
    trainer.train()
    return policy, [entry for entry in trainer.state.log_history if "train_runtime" not in entry]


def _load(sides: ImageSides, folder: Path, *, share_prompts: bool) -> CompletionLogps:
    source = resolve_model(str(folder), None)
    config = load_config(source, trust_remote_code=False)
    choice = choose(config, attn_implementation=None, share_prompts=share_prompts, gpu=False, dtype="float32")
    model = load_causal_lm(source, dtype="float32", attn_implementation=choice.implementation, trust_remote_code=False)
    images = ImageReader(str(sides.case.folder / "cache"))
    return CompletionLogps(model, shares=choice.shares, images=images).eval()


def scored(sides: ImageSides, pairs: Sequence[TokenizedPair], *, share_prompts: bool) -> list[ScoredPair]:
    """Return the pairs with the log-probs of the reference."""
    reference = _load(sides, sides.reference, share_prompts=share_prompts)
    found = []
    for pair in pairs:
        trees = build_prompt_trees([pair], 10**6)
        with torch.no_grad():
            values = reference(collate(trees, [pair]))[0].numpy()
        chosen, rejected = split_by_completion(values, trees)[0]
        fields = {name: getattr(pair, name) for name in TokenizedPair.__dataclass_fields__}
        found.append(ScoredPair(**fields, ref_chosen_logps=chosen, ref_rejected_logps=rejected))
    return found


def own_training(
    sides: ImageSides, rows: Sequence[dict[str, Any]], *, frozen: bool, share_prompts: bool
) -> tuple[Any, list[dict[str, float]]]:
    """Train as a train worker does, with the updates of torch; return the model and a line of metrics per update."""
    pairs = scored(sides, sides.pairs(rows), share_prompts=share_prompts)
    policy = _load(sides, sides.policy, share_prompts=share_prompts)
    policy.causal_lm.train()
    freeze(policy.causal_lm, tower=frozen, projector=frozen)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=OPTIONS["learning_rate"], weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=UPDATES)
    objective, engine = Objective(LossConfig(beta=OPTIONS["beta"]), 0.0, RewardMean()), Engine(policy)
    lines = []
    for update in range(UPDATES):
        members = pairs[update * BATCH : (update + 1) * BATCH]
        halves = (members[:3], members[3:])
        micro_batches = tuple(collate_scored(build_prompt_trees(half, 10**6), half) for half in halves)
        batch = RankBatch(0, BATCH, micro_batches, 0, 0, 0.0, 0.0, float(BATCH), ())
        sums = MetricSums()
        for _ in train_micro_batches(engine, batch, objective, sums, seed=0, with_statistics=True):
            pass
        norm = torch.nn.utils.clip_grad_norm_(trained, OPTIONS["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        lines.append({**sums.means(engine.device), "grad_norm": float(norm)})
    return policy.causal_lm, lines
