"""What a run settles before its first stage, so that most of what can go wrong does so at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import ray
from transformers import PreTrainedTokenizerBase

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.config import BASE, JobConfig
from raydpo.errors import ConfigError
from raydpo.models.attention.choice import AttentionChoice, choose
from raydpo.models.loading import load_config, load_tokenizer
from raydpo.models.model_flops import flops_model
from raydpo.models.router import check_router
from raydpo.models.source import ModelSource, resolve_adapter, resolve_model
from raydpo.reporting.rundir import RunDir
from raydpo.reporting.trackers import check_trackers
from raydpo.runtime import resources
from raydpo.runtime.resources import Node, WorkerGroup
from raydpo.training.deepspeed_engine import deepspeed_config
from raydpo.training.drift import DRIFT_TOLERANCES

COMPILED_LENGTHS = 4
"""Lengths that rows come in under torch_compile, which compiles anew for each."""
GPU_MULTIPLE = 8
"""Matrix units want dimensions that are multiples of this."""


@dataclass(frozen=True)
class ModelPlan:
    """Where a model comes from, and how it computes."""

    source: ModelSource
    adapter: ModelSource | None
    """The LoRA adapter on it, of a policy the one that training goes on from."""
    group: WorkerGroup
    """The workers that hold it."""
    precision: str
    """float32, bfloat16 or float16."""
    attention: AttentionChoice
    planner: MicroBatchPlanner
    """How pairs become its forwards."""

    @property
    def gpu(self) -> bool:
        """True where it is on GPUs."""
        return self.group.gpus > 0

    @property
    def display_name(self) -> str:
        """Its name, and that of its adapter, for people."""
        return (
            f"{self.source.display_name} with {self.adapter.display_name}" if self.adapter else self.source.display_name
        )

    @property
    def summary_line(self) -> str:
        """The same for people."""
        rows = "packed rows with shared prompts" if self.attention.shares else "a padded row for each completion"
        return (
            f"{rows}, {self.attention.backend} attention ({self.attention.reason}); {self.precision}, up to "
            f"{self.planner.tokens:,} tokens a forward"
        )


@dataclass(frozen=True)
class RunPlan:
    """What all stages share."""

    job: JobConfig
    run_dir: RunDir
    tokenizer: PreTrainedTokenizerBase
    policy: ModelPlan
    reference: ModelPlan
    pipelined: bool
    """True where the reference is scored while the policy trains."""

    @property
    def starts_from_reference(self) -> bool:
        """True where the policy's first weights are the reference's."""
        start = (self.policy.source, self.policy.adapter)
        return self.job.scores_reference and start == (self.reference.source, self.reference.adapter)

    @property
    def drift_tolerance(self) -> float | None:
        """What `reference_drift_tolerance` says, for a policy that starts from its reference; None for others."""
        if not self.starts_from_reference or not self.job.loss.disable_dropout:
            return None
        if self.job.reference.reference_quantization:
            return self.job.reference.reference_drift_tolerance
        usual = max(DRIFT_TOLERANCES[self.policy.precision], DRIFT_TOLERANCES[self.reference.precision])
        return self.job.reference.reference_drift_tolerance or usual


def plan_run(job: JobConfig) -> RunPlan:
    """Check what can be checked before flops starts, and lay out the run's folder.

    `output_dir` and `model_name_or_path` must be set. Raises the error that fits what is wrong.
    """
    check_trackers(job)
    assert job.run.output_dir, "the command line sets it"
    assert job.model.model_name_or_path, "the command line sets it"
    nodes = resources.nodes_of(ray.nodes())
    train_group, reference_group = resources.train_group(job, nodes), resources.reference_group(job, nodes)
    pipelined = is_pipelined(job, train_group, reference_group, nodes)
    gpu = train_group.gpus > 0
    # Reads the file that `deepspeed` names.
    deepspeed_config(job, job.precision(gpu=gpu), gpu=gpu, num_workers=train_group.workers)
    trust = job.model.trust_remote_code
    source = resolve_model(job.model.model_name_or_path, job.model.model_revision, trust_remote_code=trust)
    other = job.reference.reference_model
    reference_source = resolve_model(other, None, trust_remote_code=trust) if other else source
    adapter, reference_adapter = adapters_of(job)
    config = load_config(source, trust_remote_code=trust)
    check_router(config, job.loss.router_aux_loss_coef)
    check_quantization(job)
    policy = plan_model(job, (source, adapter), train_group, job.precision(gpu=gpu), config, flops_model(config))
    reference_config, flops = config, policy.planner.flops
    if reference_source != source:
        reference_config = load_config(reference_source, trust_remote_code=trust)
        flops = flops_model(reference_config)
    precision = job.reference_precision(gpu=reference_group.gpus > 0)
    reference = plan_model(
        job, (reference_source, reference_adapter), reference_group, precision, reference_config, flops
    )
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    run_dir = RunDir(job.run.output_dir)
    run_dir.start(job)
    return RunPlan(job, run_dir, tokenizer, policy, reference, pipelined)


def is_pipelined(job: JobConfig, train: WorkerGroup, reference: WorkerGroup, nodes: Sequence[Node]) -> bool:
    """Whether scorers flops beside the train workers; `ConfigError` where they are to, and cannot."""
    schedule = job.reference.reference_schedule
    if not job.scores_reference or schedule == "staged":
        return False
    room = resources.fit_together([train, reference], nodes)
    sync = job.reference.sync_ref_model
    if (schedule == "pipelined" or sync) and not room:
        asked = "sync_ref_model=true" if sync else "reference_schedule=pipelined"
        raise ConfigError(
            f"{asked} needs room for {train.workers} train workers of {train.gpus:g} GPUs and {train.cpus:g} CPUs and "
            f"for {reference.workers} scorers of {reference.gpus:g} and {reference.cpus:g} at the same time; lower "
            "num_workers, reference_num_workers or what each takes, or leave it out"
        )
    return room


def check_quantization(job: JobConfig) -> None:
    """`ConfigError` where the package that quantises is not there."""
    quantization = job.reference.reference_quantization
    if quantization and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"reference_quantization={quantization} needs the package bitsandbytes; `pip install bitsandbytes` on "
            "every node, or leave it out"
        )


def adapters_of(job: JobConfig) -> tuple[ModelSource | None, ModelSource | None]:
    """The adapters that policy and reference start from; a reference of its own has only one that is named for it."""
    start, other = job.adapter.model_adapter_name, job.reference.ref_adapter_name
    if other is None and job.reference.reference_model is None:
        other = start
    return (
        resolve_adapter(start) if start else None,
        resolve_adapter(other) if other and other != BASE else None,
    )


def plan_model(
    job: JobConfig,
    model: tuple[ModelSource, ModelSource | None],
    group: WorkerGroup,
    precision: str,
    config: Any,
    flops: FlopsModel,
) -> ModelPlan:
    """How a model with this Hugging Face config computes on a group of workers; `ModelError` where it cannot."""
    gpu = group.gpus > 0
    attention = choose(
        config,
        attn_implementation=job.model.attn_implementation,
        share_prompts=job.model.share_prompts,
        gpu=gpu,
        dtype=precision,
    )
    tokens = job.tokens_per_micro_batch(gpu=gpu)
    multiple = -(-tokens // COMPILED_LENGTHS) if job.model.torch_compile else GPU_MULTIPLE if gpu else 1
    planner = MicroBatchPlanner(tokens=tokens, flops=flops, padded=not attention.shares, multiple=multiple)
    return ModelPlan(*model, group, precision, attention, planner)
