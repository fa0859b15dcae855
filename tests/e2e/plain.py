"""DPO as a plain torch loop, against which the tests compare the numbers of the main job.

It uses padded batches and full logits, and neither Ray nor DeepSpeed nor any code of raydpo. Formulas: Rafailov et al.
2023, eq. 7 and the rewards below it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

BETAS, EPSILON = (0.9, 0.999), 1e-8


def completion_logps(model: Any, sequences: list[list[int]], prompts: list[int]) -> Tensor:
    """Return log p(completion | prompt) of each sequence, [len(sequences)].

    Sequence i begins with prompts[i] prompt tokens.
    """
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    logps = model(input_ids=ids, attention_mask=mask).logits.log_softmax(dim=-1)
    picked = logps[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    counted = torch.tensor(
        [
            [prompt - 1 <= position < len(sequence) - 1 for position in range(width - 1)]
            for sequence, prompt in zip(sequences, prompts, strict=True)
        ]
    )
    return (picked * counted).sum(dim=1)


def train(
    policy_folder: Path, reference_folder: Path, rows: list[dict[str, str]], options: dict[str, Any]
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Train one epoch in the order of the rows; return the metrics of each step and the final weights.

    `options` has the keys of `updates`, and `batch`, the number of pairs per update.
    """
    policy = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(reference_folder, dtype=torch.float32).eval()
    batches = [rows[start : start + options["batch"]] for start in range(0, len(rows), options["batch"])]
    history = list(updates(policy, reference, AutoTokenizer.from_pretrained(policy_folder), batches, options))
    return history, {name: tensor.detach() for name, tensor in policy.state_dict().items()}


def updates(
    policy: Any, reference: Any, tokenizer: Any, batches: list[list[dict[str, str]]], options: dict[str, Any]
) -> Iterator[dict[str, float]]:
    """Update the policy's trainable weights with each batch in turn, and yield the metrics of each update.

    A caller may change the reference between updates. `options` has the keys learning_rate, beta and max_grad_norm; the
    learning rate decays linearly to 0 without warm-up.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options["learning_rate"], betas=BETAS, eps=EPSILON, weight_decay=0.0)
    for step, batch in enumerate(batches):
        loss, metrics = dpo(policy, reference, tokenizer, batch, options["beta"])
        for group in optimizer.param_groups:
            group["lr"] = options["learning_rate"] * (1 - step / len(batches))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, options["max_grad_norm"])
        optimizer.step()
        yield {**metrics, "grad_norm": norm.item()}


def dpo(
    policy: Any, reference: Any, tokenizer: Any, batch: list[dict[str, str]], beta: float
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean DPO loss of a batch and its metrics; rows may have a `margin` (Amini et al. 2024, ODPO)."""
    prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in batch] * 2
    texts = [row["prompt"] + row[side] + tokenizer.eos_token for side in ("chosen", "rejected") for row in batch]
    sequences = [tokenizer(text)["input_ids"] for text in texts]
    chosen, rejected = completion_logps(policy, sequences, prompts).chunk(2)
    with torch.no_grad():
        ref_chosen, ref_rejected = completion_logps(reference, sequences, prompts).chunk(2)
    margins = torch.tensor([float(row.get("margin", 0.0)) for row in batch])
    loss = -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)) - margins).mean()
    return loss, {
        "loss": loss.item(),
        "rewards/chosen": beta * (chosen - ref_chosen).mean().item(),
        "rewards/rejected": beta * (rejected - ref_rejected).mean().item(),
        "rewards/margins": beta * (chosen - ref_chosen - rejected + ref_rejected).mean().item(),
        "logps/chosen": chosen.mean().item(),
        "logps/rejected": rejected.mean().item(),
    }
