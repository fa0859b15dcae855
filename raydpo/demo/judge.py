"""Evaluation of a demo model's answers to held-out requests: their manner, and whether the content is complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.demo.facts import Dialogue, judge_answer

LONGEST_ANSWER = 48
"""Maximum tokens of an answer; the longest correct answer has about 30."""


@dataclass(frozen=True)
class Answers:
    """The shares of answers with a property, between 0 and 1, and a few examples."""

    courteous: float
    """Share of answers in the courteous manner."""
    well_formed: float
    """Share of answers that the model ended itself and that consist of an opening and the two requested facts only."""
    examples: tuple[str, ...]
    """The first three answers, as text."""


@dataclass(frozen=True)
class Assessment:
    """The answers of a model with greedy decoding and with sampling at temperature 1."""

    greedy: Answers
    sampled: Answers


def assess(folder: str, asked: Sequence[Dialogue], seed: int) -> Assessment:
    """Let the model in `folder` answer each request with greedy decoding and with sampling, on the CPU.

    The folder holds a full model or a LoRA adapter.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = _load(folder)
    torch.manual_seed(seed)
    greedy = _answers(model, tokenizer, asked, do_sample=False)
    sampled = _answers(model, tokenizer, asked, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return Assessment(greedy, sampled)


def _load(folder: str) -> Any:
    """Return the model in a folder, with its base model if the folder holds an adapter."""
    if (Path(folder) / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _answers(model: Any, tokenizer: Any, asked: Sequence[Dialogue], **generation: Any) -> Answers:
    """Generate an answer per request with the given options of `generate`, and judge them."""
    prompts = [dialogue.request.messages for dialogue in asked]
    texts = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, **generation)
    verdicts, answers = [], []
    for dialogue, ids in zip(asked, generated[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        ended = tokenizer.eos_token_id in ids
        text = tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)] if ended else ids)
        verdicts.append(judge_answer(dialogue.request, text, ended))
        answers.append(text)
    return Answers(
        courteous=sum(verdict.manner == "courteous" for verdict in verdicts) / len(asked),
        well_formed=sum(verdict.well_formed for verdict in verdicts) / len(asked),
        examples=tuple(answers[:3]),
    )
