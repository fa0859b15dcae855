"""What a checkpoint and the run that resumes from it must have in common, beside the data and the reference."""

import json
from typing import Any

from raydpo.models.source import local_folder
from raydpo.reference.fingerprint import sampled_digest
from raydpo.stages.plan import RunPlan

FREE = frozenset({"lr", "weight_decay"})
"""Parameters of an optimizer that a resumed run may change: they are options that may."""


def plan_fingerprint(plan: RunPlan) -> dict[str, str]:
    """Return digests and settings of the model, its precision, the batch and DeepSpeed, by what each is called."""
    return {
        "model": sampled_digest(local_folder(plan.policy.source)),
        "precision": plan.policy.precision,
        "global batch": f"{plan.global_batch} pairs",
        "DeepSpeed config": _describe(plan.deepspeed_config),
    }


def _describe(config: dict[str, Any]) -> str:
    """Return the ZeRO stage, the optimizer and the schedule of a DeepSpeed config, without what may change."""
    parts = [f"stage {config['zero_optimization']['stage']}"]
    for section, free in (("optimizer", FREE), ("scheduler", frozenset[str]())):
        if section in config:
            kept = {key: value for key, value in config[section]["params"].items() if key not in free}
            if section == "scheduler":
                kept = {key: value for key, value in kept.items() if not key.endswith("max_lr")}
            parts.append(f"{section} {config[section]['type']} {json.dumps(kept, sort_keys=True)}")
    return ", ".join(parts)
