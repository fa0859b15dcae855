"""The policy as a train worker builds it."""

from typing import Any

import torch

from raydpo.models.adapters import add_lora, load_adapter
from raydpo.models.compile import compile_layers
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.forward_check import CheckedModel, ForwardCheck, check_forward
from raydpo.models.images.reader import open_images
from raydpo.models.loading import disable_dropout, enable_gradient_checkpointing, load_causal_lm
from raydpo.models.router import RouterLoss, router_loss
from raydpo.models.vision import freeze, frozen_modules
from raydpo.training import deepspeed_engine
from raydpo.training.task import TrainTask


def build_policy(task: TrainTask) -> tuple[CompletionLogps, RouterLoss | None]:
    """Return the model to train, as a module that computes log-probs, and its router's auxiliary loss if it has one."""
    job, plan = task.job, task.policy
    keep_alive = deepspeed_engine.keep_weights_partitioned(task.deepspeed_config)
    model: Any = load_causal_lm(
        plan.source,
        dtype=plan.precision,
        attn_implementation=plan.attention.implementation,
        trust_remote_code=job.model.trust_remote_code,
    )
    router = router_loss(model, job.loss.router_aux_loss_coef)
    if job.gradient_checkpointing(plan.gpu):
        enable_gradient_checkpointing(model)
    if plan.adapter:
        model = load_adapter(model, plan.adapter, trainable=True)
    elif job.adapter.use_peft:
        frozen = frozen_modules(
            model, tower=job.model.freeze_vision_tower, projector=job.model.freeze_multi_modal_projector
        )
        model = add_lora(model, job.adapter, frozen)
    else:
        freeze(model, tower=job.model.freeze_vision_tower, projector=job.model.freeze_multi_modal_projector)
    if job.loss.disable_dropout:
        disable_dropout(model)
    if job.model.torch_compile:
        compile_layers(model, bounded=plan.attention.shares)
    del keep_alive  # kept until here, as transformers keeps only a weak reference
    policy = CompletionLogps(
        model,
        shares=plan.attention.shares,
        chunk_tokens=job.model.logits_chunk_tokens,
        router_loss=router,
        images=open_images(plan.images),
    )
    return policy, router


def check_policy(engine: Any, task: TrainTask) -> ForwardCheck:
    """Prove that the log-probs of the policy in a DeepSpeed engine are those of its own forward; every rank calls it.

    Raises ModelError, on all ranks alike, where they are not.
    """

    def largest(value: float) -> float:
        found = torch.tensor([value], dtype=torch.float64, device=engine.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        return float(found)

    policy, plan = engine.module, task.policy
    trains, multiple = task.job.loss.disable_dropout, plan.planner.multiple
    return check_forward(CheckedModel(policy, engine, plan.precision, trains, multiple, largest))
