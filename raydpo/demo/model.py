"""The starter: a small Llama that answers requests in both manners alike, trained on the spot."""

import contextlib
import hashlib
import math
import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raydpo.demo import english, facts, tokenizer
from raydpo.demo.facts import dialogues
from raydpo.demo.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How the starter is made; its folder is named by a digest of this and of the texts it learns from."""

    seed: int = 0
    vocab_size: int = 2048
    layers: int = 2
    hidden_size: int = 128
    heads: int = 4
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_steps: int = 30
    dialogues: int = 6000

    @property
    def digest(self) -> str:
        """Changes with the recipe and with whatever the texts are made of."""
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode())
        for module in (english, facts, tokenizer):
            digest.update(Path(str(module.__file__)).read_bytes())
        return digest.hexdigest()[:12]


def ensure_starter(cache_dir: str, on_progress: Callable[[int, int], None], recipe: Recipe | None = None) -> str:
    """The folder of the starter below `cache_dir`, made there where it is missing.

    `on_progress(done, total)` counts training steps. The folder appears whole.
    """
    recipe = recipe or Recipe()
    folder = Path(cache_dir) / f"starter-{recipe.digest}"
    if not folder.exists():
        aside = folder.with_name(f".{uuid.uuid4().hex}.part")
        words = build_tokenizer(recipe.vocab_size)
        model = _train(recipe, words, on_progress)
        model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
        with _told_of_the_cpu():
            model.save_pretrained(aside)
        words.save_pretrained(aside)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(aside)  # another process was faster, with the same result
    return str(folder)


@contextlib.contextmanager
def _told_of_the_cpu() -> Iterator[None]:
    """Saving a model loads DeepSpeed, which prints a warning where it has to find out for itself that there is no GPU.

    Only for as long as that takes: Ray's workers inherit the environment, and may have GPUs.
    """
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]
        else:
            os.environ["DS_ACCELERATOR"] = before


def _train(recipe: Recipe, words: PreTrainedTokenizerFast, on_progress: Callable[[int, int], None]) -> LlamaForCausalLM:
    """A plain loop: AdamW, cosine schedule, loss on the answers only."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=recipe.hidden_size,
            intermediate_size=3 * recipe.hidden_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    examples = _examples(recipe, words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.steps):
        warmth = min(1.0, (step + 1) / recipe.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmth * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        batch = examples[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        optimizer.zero_grad()
        _loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_progress(step + 1, recipe.steps)
    return model


def _examples(recipe: Recipe, words: PreTrainedTokenizerFast) -> list[tuple[list[int], int]]:
    """(token ids of prompt and answer, tokens of the prompt) for every step, in both manners equally often."""
    draw = random.Random(recipe.seed)
    known = dialogues(recipe.dialogues, recipe.seed)
    chosen = [draw.choice(known) for _ in range(recipe.steps * recipe.batch_size)]
    prompts = [dialogue.request.messages for dialogue in chosen]
    answers = [draw.choice((dialogue.courteous, dialogue.curt)) for dialogue in chosen]
    whole = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    texts = words.apply_chat_template(whole, tokenize=False)
    starts = words.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    return [(ids, len(start)) for ids, start in zip(words(texts)["input_ids"], words(starts)["input_ids"], strict=True)]


def _loss(model: LlamaForCausalLM, batch: list[tuple[list[int], int]]) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    width = max(len(ids) for ids, _ in batch)
    inputs = torch.zeros(len(batch), width, dtype=torch.int64)
    labels = torch.full((len(batch), width), -100)
    for row, (ids, prompt) in enumerate(batch):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt : len(ids)] = inputs[row, prompt : len(ids)]
    # Rows are padded on the right, which a causal model does not look at: no mask is needed.
    loss: Tensor = model(input_ids=inputs, labels=labels, use_cache=False).loss
    return loss
