"""The metrics of held-out text pairs by transformers and peft alone: each sequence by itself, with full logits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_exported(folder: Path, base: Path) -> Any:
    """Load an exported model, or an exported adapter onto its base."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


@torch.no_grad()
def dpo_metrics(folder: Path, base: Path, pairs: Sequence[Mapping[str, str]], beta: float = 0.1) -> dict[str, float]:
    """Return an export's metrics of these pairs (Rafailov et al. 2023, eq. 7), with its base as the reference."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def logps(model: Any, side: str) -> torch.Tensor:
        sums = []
        for pair in pairs:
            start = len(tokenizer(pair["prompt"])["input_ids"])
            ids = torch.tensor(tokenizer(pair["prompt"] + pair[side] + tokenizer.eos_token)["input_ids"])
            found = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
            sums.append(found.gather(1, ids[1:, None])[start - 1 :].sum())
        return torch.stack(sums)

    policy, reference = load_exported(folder, base), AutoModelForCausalLM.from_pretrained(base).eval()
    chosen, rejected = logps(policy, "chosen"), logps(policy, "rejected")
    margins = beta * ((chosen - logps(reference, "chosen")) - (rejected - logps(reference, "rejected")))
    return {
        "eval_loss": float(-torch.nn.functional.logsigmoid(margins).mean()),
        "eval_logps/chosen": float(chosen.mean()),
        "eval_logps/rejected": float(rejected.mean()),
        "eval_rewards/margins": float(margins.mean()),
    }
