"""Runs TRL's trainers in this process, with the options that raydpo's job takes, and returns their log.

TRL is imported inside the functions, so that the tests can be collected, and skipped with a reason, without TRL.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed; it comes with the extra parity")

RUN_ON_CPU = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "dataloader_pin_memory": False}
"""Options of TRL's side only; none of them changes a number."""


def classes(job: str) -> tuple[Any, Any]:
    """Return TRL's config and trainer classes of a job: dpo, orpo or cpo."""
    import trl
    from trl.experimental import cpo, orpo

    return {
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "orpo": (orpo.ORPOConfig, orpo.ORPOTrainer),
        "cpo": (cpo.CPOConfig, cpo.CPOTrainer),
    }[job]


def train(
    job: str, folders: dict[str, Path], data: dict[str, list[Any]], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Train, and return the log: one entry per logging step or evaluation, and a summary at the end.

    `folders` has the keys output, policy and, for dpo, reference; models are float32, as saved. `data` has the rows
    under train and, if there is an evaluation, under eval.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config_class, trainer_class = classes(job)
    reference = {"ref_model": AutoModelForCausalLM.from_pretrained(folders["reference"])} if job == "dpo" else {}
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(folders["policy"]),
        args=config_class(output_dir=str(folders["output"]), **RUN_ON_CPU, **options),
        processing_class=AutoTokenizer.from_pretrained(folders["policy"]),
        train_dataset=Dataset.from_list(data["train"]),
        eval_dataset=Dataset.from_list(data["eval"]) if "eval" in data else None,
        **reference,
    )
    trainer.train()
    history: list[dict[str, Any]] = trainer.state.log_history
    return history
