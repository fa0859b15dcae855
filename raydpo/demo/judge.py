"""How a model answers held-out requests: in which manner, and whether the content asked for is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.demo.facts import Dialogue, judge_answer

LONGEST_ANSWER = 48
"""Tokens; the longest right answer has about 30."""


@dataclass(frozen=True)
class Answers:
    """Shares of all answers, between 0 and 1."""

    courteous: float
    well_formed: float
    """Ended by the model, with the two facts asked for, and nothing else but an opening."""
    examples: tuple[str, ...]
    """The first few, as text."""


@dataclass(frozen=True)
class Assessment:
    """How a model answers, when it takes the likeliest token and when it draws at temperature 1."""

    greedy: Answers
    sampled: Answers


def assess(folder: str, asked: Sequence[Dialogue], seed: int) -> Assessment:
    """Let the model in `folder` (whole, or a LoRA adapter on its base) answer each request twice, on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = _load(folder)
    torch.manual_seed(seed)
    greedy = _answers(model, tokenizer, asked, do_sample=False)
    sampled = _answers(model, tokenizer, asked, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return Assessment(greedy, sampled)


def _load(folder: str) -> Any:
    if (Path(folder) / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _answers(model: Any, tokenizer: Any, asked: Sequence[Dialogue], **how: Any) -> Answers:
    prompts = [dialogue.request.messages for dialogue in asked]
    texts = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        whole = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, **how)
    verdicts, answers = [], []
    for dialogue, ids in zip(asked, whole[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        ended = tokenizer.eos_token_id in ids
        text = tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)] if ended else ids)
        verdicts.append(judge_answer(dialogue.request, text, ended))
        answers.append(text)
    return Answers(
        courteous=sum(verdict.manner == "courteous" for verdict in verdicts) / len(asked),
        well_formed=sum(verdict.well_formed for verdict in verdicts) / len(asked),
        examples=tuple(answers[:3]),
    )
