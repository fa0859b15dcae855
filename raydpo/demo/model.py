"""The demo's starter model: a small Llama, trained locally to answer requests in both manners equally often."""

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
    """The hyperparameters of the starter; a digest of them and of its training texts names its folder."""

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
        """Digest of the recipe and of the modules that generate and tokenize the training texts."""
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode())
        for module in (english, facts, tokenizer):
            digest.update(Path(str(module.__file__)).read_bytes())
        return digest.hexdigest()[:12]


def ensure_starter(cache_dir: str, on_progress: Callable[[int, int], None], recipe: Recipe | None = None) -> str:
    """Return the folder of the starter below `cache_dir`, and train the starter first if the folder is missing.

    `on_progress(done, total)` is called after each training step. The folder appears atomically, once it is complete.
    """
    recipe = recipe or Recipe()
    folder = Path(cache_dir) / f"starter-{recipe.digest}"
    if not folder.exists():
        temporary = folder.with_name(f".{uuid.uuid4().hex}.part")
        fast_tokenizer = build_tokenizer(recipe.vocab_size)
        model = _train(recipe, fast_tokenizer, on_progress)
        model.generation_config = GenerationConfig(
            eos_token_id=fast_tokenizer.eos_token_id, pad_token_id=fast_tokenizer.pad_token_id
        )
        with _deepspeed_on_cpu():
            model.save_pretrained(temporary)
        fast_tokenizer.save_pretrained(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(temporary)  # another process was faster, and its result is the same
    return str(folder)


@contextlib.contextmanager
def _deepspeed_on_cpu() -> Iterator[None]:
    """Set DeepSpeed's accelerator to the CPU while a model is saved.

    Saving loads DeepSpeed, which prints a warning if it has to detect that there is no GPU. The setting is restored
    afterwards, as Ray's workers inherit the environment and may have GPUs.
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


def _train(
    recipe: Recipe, fast_tokenizer: PreTrainedTokenizerFast, on_progress: Callable[[int, int], None]
) -> LlamaForCausalLM:
    """Train the starter in a plain loop, with AdamW, a cosine schedule and the loss on the answers only."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast_tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=3 * recipe.hidden_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=fast_tokenizer.eos_token_id,
            pad_token_id=fast_tokenizer.pad_token_id,
        )
    )
    examples = _examples(recipe, fast_tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.steps):
        warmup = min(1.0, (step + 1) / recipe.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        batch = examples[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        optimizer.zero_grad()
        _loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_progress(step + 1, recipe.steps)
    return model


def _examples(recipe: Recipe, fast_tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], int]]:
    """Return (token ids of prompt + answer, number of prompt tokens) for each example of all steps.

    The manner of each answer is random, and both manners are equally likely.
    """
    draw = random.Random(recipe.seed)
    known = dialogues(recipe.dialogues, recipe.seed)
    chosen = [draw.choice(known) for _ in range(recipe.steps * recipe.batch_size)]
    prompts = [dialogue.request.messages for dialogue in chosen]
    answers = [draw.choice((dialogue.courteous, dialogue.curt)) for dialogue in chosen]
    conversations = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    texts = fast_tokenizer.apply_chat_template(conversations, tokenize=False)
    starts = fast_tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    return [
        (ids, len(start))
        for ids, start in zip(fast_tokenizer(texts)["input_ids"], fast_tokenizer(starts)["input_ids"], strict=True)
    ]


def _loss(model: LlamaForCausalLM, batch: list[tuple[list[int], int]]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens."""
    width = max(len(ids) for ids, _ in batch)
    inputs = torch.zeros(len(batch), width, dtype=torch.int64)
    labels = torch.full((len(batch), width), -100)
    for row, (ids, prompt) in enumerate(batch):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt : len(ids)] = inputs[row, prompt : len(ids)]
    # Rows are padded on the right, which a causal model does not attend to, so no mask is needed.
    loss: Tensor = model(input_ids=inputs, labels=labels, use_cache=False).loss
    return loss
