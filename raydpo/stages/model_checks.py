"""Checks of the options against the models, before a worker starts: on skeletons, which have shapes and no weights."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from raydpo.config import JobConfig
from raydpo.errors import ConfigError, ModelError
from raydpo.models.adapters import add_lora
from raydpo.models.compile import layers_to_compile
from raydpo.models.loading import LOAD_ERRORS, enable_gradient_checkpointing
from raydpo.models.plan import ModelPlan
from raydpo.models.router import router_loss
from raydpo.models.skeleton import build_skeleton, embedding_rows, learned_positions, stored_embedding_rows
from raydpo.models.source import ModelSource, local_folder
from raydpo.models.vision import frozen_modules

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that a model has rows for."""

    model: str
    """Name of the model, for messages."""
    inputs: int
    """Number of rows of the input embedding."""
    outputs: int
    """Number of tokens that the model predicts."""
    positions: int | None = None
    """Number of tokens in a sequence that the model has position embeddings for; None: no limit of this kind."""


def check_precision(job: JobConfig, precision: str, *, gpu: bool) -> None:
    """Raise ConfigError where the policy would be trained in float16 on CPUs, for which DeepSpeed has no support."""
    if not gpu and precision == "float16":
        option = "fp16=true" if job.optim.fp16 else "dtype=float16"
        raise ConfigError(
            f"{option} needs GPUs: the train workers of this run are on CPUs, where float16 is not supported; leave it "
            "out for float32, or set bf16=true"
        )


def check_model(job: JobConfig, plan: ModelPlan, config: Any) -> PreTrainedModel | None:
    """Check the options of the policy against its architecture; return its skeleton, or None if it has none.

    Raises the ModelError that a train worker would raise once it has loaded the weights.
    """
    skeleton = plan_skeleton(plan, config, trust=job.model.trust_remote_code)
    if skeleton is None:
        return None
    router_loss(skeleton, job.loss.router_aux_loss_coef)
    if job.gradient_checkpointing(plan.gpu):
        enable_gradient_checkpointing(skeleton)
    if job.model.torch_compile:
        layers_to_compile(skeleton)
    if job.adapter.use_peft and not plan.adapter:
        parts = {"tower": job.model.freeze_vision_tower, "projector": job.model.freeze_multi_modal_projector}
        with torch.device("meta"):
            add_lora(skeleton, job.adapter, frozen_modules(skeleton, **parts))
    return skeleton


def plan_skeleton(plan: ModelPlan, config: Any, *, trust: bool) -> PreTrainedModel | None:
    """Return the skeleton of a model as planned. Raises ModelError where its attention cannot be had.

    Kernels from the hub and those for GPUs may be installed on the workers alone; those are left to them.
    """
    wanted = plan.attention.implementation
    if wanted and not plan.attention.shares and any(mark in wanted for mark in ("/", "flash")):
        wanted = None
    return build_skeleton(config, attn_implementation=wanted, trust_remote_code=trust, name=plan.source.display_name)


def vocabulary(skeleton: PreTrainedModel | None, source: ModelSource) -> Vocabulary | None:
    """Return the token ids that a model has rows for, by its skeleton or else by its weight files; None if unknown.

    Raises ModelError where the two contradict each other.
    """
    name, stored = source.display_name, stored_embedding_rows(local_folder(source))
    if skeleton is None:
        return None if stored is None else Vocabulary(name, stored, stored)
    inputs, outputs = embedding_rows(skeleton)
    if stored is not None and stored != inputs:
        raise ModelError(
            f"the input embedding of {name!r} has {stored} rows in its weight files, and {inputs} by its config.json; "
            f"set vocab_size={stored} there"
        )
    return Vocabulary(name, inputs, inputs if outputs is None else outputs, learned_positions(skeleton))


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, vocabularies: tuple[Vocabulary, ...]) -> None:
    """Raise ModelError where a model has no row for the end-of-sequence token, which ends each completion."""
    for found in vocabularies:
        rows = min(found.inputs, found.outputs)
        if tokenizer.eos_token_id >= rows:
            raise ModelError(
                f"the tokenizer's eos_token {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id}, and "
                f"{found.model!r} has rows for ids below {rows}; give the model's own tokenizer, or save the model "
                f"after resize_token_embeddings({tokenizer.eos_token_id + 1})"
            )


def check_reference_tokenizer(tokenizer: PreTrainedTokenizerBase, reference: ModelPlan, *, trust: bool) -> None:
    """Raise ModelError where the reference's own tokenizer gives ordinary tokens other ids than the policy's does.

    The reference scores the policy's token ids. Added and special tokens may have other names, as fine-tuned models
    rename reserved ones; these are logged. A reference without tokenizer files passes.
    """
    try:
        other = AutoTokenizer.from_pretrained(local_folder(reference.source), trust_remote_code=trust)
    except LOAD_ERRORS as error:
        _log.debug("The tokenizer of %r is not compared: %s", reference.source.name, error)
        return
    ours, theirs = _tokens_by_id(tokenizer), _tokens_by_id(other)
    different = sorted(token_id for token_id in ours.keys() & theirs.keys() if ours[token_id] != theirs[token_id])
    added = set(tokenizer.added_tokens_decoder) | set(other.added_tokens_decoder)
    if ordinary := [token_id for token_id in different if token_id not in added]:
        first = ordinary[0]
        raise ModelError(
            f"reference_model={reference.source.name} reads {len(ordinary)} token ids as other tokens than the policy "
            f"does, first {first}: {theirs[first]!r}, and {ours[first]!r} for the policy; give a reference with the "
            "policy's tokenizer"
        )
    if different:
        first = different[0]
        _log.warning(
            "The reference names %d special tokens differently, first %d: %r, and %r for the policy.",
            len(different), first, theirs[first], ours[first],
        )  # fmt: skip


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.get_vocab().items()}
