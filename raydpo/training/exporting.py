"""The end of a train worker: the trained model or adapter is written, loaded anew and compared with the policy."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from raydpo.errors import ModelError
from raydpo.models.checkpoint_keys import checkpoint_keys, load_notes
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.export_check import ExportCheck, Exported, check_export, trained_logps
from raydpo.models.loading import load_tokenizer
from raydpo.models.source import ModelSource
from raydpo.training import deepspeed_engine
from raydpo.training.task import TrainTask


def run_target(task: TrainTask, name: str, source: ModelSource) -> ExportTarget:
    """Return the target for weights in the folder `name` of the run, which rank 0 writes."""
    tokenizer = load_tokenizer(
        task.policy.source, trust_remote_code=task.job.model.trust_remote_code, chat_template=task.chat_template
    )
    is_main = torch.distributed.get_rank() == 0
    return ExportTarget(folder=str(Path(task.run_dir) / name), source=source, tokenizer=tokenizer, is_main=is_main)


def export_policy(engine: Any, task: TrainTask, target: ExportTarget) -> ExportCheck:
    """Write the policy in a DeepSpeed engine, and return how far the written one is from it; all ranks call it.

    Raises ModelError, on all ranks alike, where the export is not the model that was trained; its files are kept.
    """
    job, plan, policy = task.job, task.policy, engine.module
    trained = trained_logps(policy, engine, multiple=plan.planner.multiple)
    adapter = job.adapter.use_peft
    write = export_adapter if adapter else export_model
    write(policy.model, target, deepspeed_engine.gather(task.deepspeed_config))
    keys = checkpoint_keys(policy.causal_lm)
    carried = keys.carried(policy.causal_lm) if keys and not adapter else ""
    outcome: list[ExportCheck | ModelError | None] = [None]
    if target.is_main:
        exported = Exported(target.folder, plan.source, adapter, plan.precision, job.model.trust_remote_code)
        try:
            check = check_export(exported, trained, policy.causal_lm)
            outcome[0] = dataclasses.replace(check, carried=carried, notes=tuple(load_notes(policy.causal_lm)))
        except ModelError as error:
            outcome[0] = error
    torch.distributed.broadcast_object_list(outcome, device=engine.device)
    (result,) = outcome
    if isinstance(result, ModelError):
        raise result
    assert result, "rank 0 has a check or an error"
    return result
