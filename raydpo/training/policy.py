"""The policy as a train worker loads it."""

from typing import Any

from raydpo.models.adapters import add_lora, load_adapter
from raydpo.models.compile import compile_layers
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.loading import disable_dropout, enable_gradient_checkpointing, load_causal_lm
from raydpo.models.router import RouterLoss, router_loss
from raydpo.training import deepspeed_engine
from raydpo.training.task import TrainTask


def build_policy(task: TrainTask, deepspeed_config: dict[str, Any]) -> tuple[CompletionLogps, RouterLoss | None]:
    """The model to train, as a policy that gives log-probs; and its auxiliary loss, if it is to have one."""
    keep_alive = deepspeed_engine.keep_weights_partitioned(deepspeed_config)
    model: Any = load_causal_lm(
        task.source,
        dtype=task.precision,
        attn_implementation=task.attention.implementation,
        trust_remote_code=task.job.model.trust_remote_code,
    )
    router = router_loss(model, task.job.loss.router_aux_loss_coef)
    if task.job.gradient_checkpointing(task.gpu):
        enable_gradient_checkpointing(model)
    if task.adapter:
        model = load_adapter(model, task.adapter, trainable=True)
    elif task.job.adapter.use_peft:
        model = add_lora(model, task.job.adapter)
    if task.job.loss.disable_dropout:
        disable_dropout(model)
    if task.job.model.torch_compile:
        compile_layers(model, bounded=task.attention.shares)
    del keep_alive  # held until here, as transformers keeps no reference of its own
    chunk_tokens = task.job.model.logits_chunk_tokens
    policy = CompletionLogps(model, shares=task.attention.shares, chunk_tokens=chunk_tokens, router_loss=router)
    return policy, router
