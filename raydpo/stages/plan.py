"""The plan of a run, resolved and checked before the first stage, so that most mistakes show before work starts.

Plans are plain records. Nothing here needs Ray: the cluster's nodes are an argument.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.config import BASE, JobConfig
from raydpo.data.images.loading import load_image_processing
from raydpo.data.images.processing import ImageProcessing
from raydpo.data.seq2seq import Seq2SeqText, check_targets
from raydpo.data.templates.chat_template import writes_date
from raydpo.errors import ConfigError
from raydpo.models.attention.choice import choose, follows_own_length
from raydpo.models.classes import is_vision_language
from raydpo.models.loading import load_config, load_tokenizer
from raydpo.models.model_flops import flops_model
from raydpo.models.plan import ModelPlan
from raydpo.models.router import check_router
from raydpo.models.source import ModelSource, resolve_adapter, resolve_model
from raydpo.models.template_option import read_chat_template
from raydpo.reporting.notes import Notes
from raydpo.reporting.rundir import RunDir
from raydpo.reporting.trackers import check_trackers
from raydpo.runtime import resources, storage
from raydpo.runtime.resources import Node, WorkerGroup
from raydpo.stages.encoder_decoder import check_encoder_decoder, seq2seq_text
from raydpo.stages.model_checks import (
    Vocabulary,
    check_model,
    check_precision,
    check_reference_tokenizer,
    check_special_tokens,
    plan_skeleton,
    vocabulary,
)
from raydpo.training.deepspeed_config import deepspeed_config, hidden_size, with_deepspeed_file
from raydpo.training.drift import DRIFT_TOLERANCES
from raydpo.training.resume import with_absolute_path

COMPILED_LENGTHS = 4
"""Number of lengths that packed rows have under torch_compile, which compiles the layers for each."""
GPU_MULTIPLE = 8
"""Packed rows on GPUs are filled up to a multiple of this many tokens, as matrix units work best on such shapes."""


@dataclass(frozen=True)
class RunPlan:
    """What all stages of a run share."""

    job: JobConfig
    run_dir: RunDir
    tokenizer: PreTrainedTokenizerBase
    policy: ModelPlan
    reference: ModelPlan
    pipelined: bool
    """Whether the reference is scored while the policy trains."""
    deepspeed_config: dict[str, Any]
    """DeepSpeed config of the train workers."""
    images: ImageProcessing | None = None
    """How the policy's model reads images, or why it reads none."""
    seq2seq: Seq2SeqText | None = None
    """What the text of an encoder-decoder depends on; None for a decoder model."""
    vocabularies: tuple[Vocabulary, ...] = ()
    """The token ids that policy and reference have rows for, where that is known without loading them."""
    notes: Notes = field(default_factory=Notes)
    """What the run does otherwise than its options say, as it is found out."""

    @property
    def ranks(self) -> int:
        """Number of train workers."""
        return self.policy.group.workers

    @property
    def global_batch(self) -> int:
        """Number of pairs per update, over all ranks."""
        return self.job.global_batch(self.ranks)

    @property
    def eval_batch(self) -> int:
        """Number of held-out pairs that are evaluated together, over all ranks."""
        return self.job.optim.per_device_eval_batch_size * self.ranks

    @property
    def starts_from_reference(self) -> bool:
        """Whether the policy's initial weights are those of a reference that is scored."""
        start = (self.policy.source, self.policy.adapter)
        return self.job.scores_reference and start == (self.reference.source, self.reference.adapter)

    @property
    def drift_tolerance(self) -> float | None:
        """Largest mean drift per token, in nats, before the first update.

        None, no limit: where the policy does not start from its reference, where dropout is on, and by default where
        the reference is quantised.
        """
        if not self.starts_from_reference or not self.job.loss.disable_dropout:
            return None
        if self.job.reference.reference_quantization:
            return self.job.reference.reference_drift_tolerance
        default = max(DRIFT_TOLERANCES[self.policy.precision], DRIFT_TOLERANCES[self.reference.precision])
        return self.job.reference.reference_drift_tolerance or default


def plan_run(job: JobConfig, nodes: Sequence[Node]) -> RunPlan:
    """Resolve the job on a cluster of these nodes, and check what can be checked before work starts.

    `output_dir` and `model_name_or_path` must be set. Raises the `RaydpoError` that fits what is wrong.
    """
    check_trackers(job)
    check_quantization(job)
    train_group, reference_group = resources.train_group(job, nodes), resources.reference_group(job, nodes)
    pipelined = is_pipelined(job, train_group, reference_group, nodes)
    job, file, overridden = with_deepspeed_file(
        with_absolute_path(job), gpu=train_group.gpu, num_workers=train_group.workers
    )
    precision = job.precision(gpu=train_group.gpu)
    assert job.run.output_dir, "the command line sets it"
    assert job.model.model_name_or_path, "the command line sets it"
    trust = job.model.trust_remote_code
    source = resolve_model(job.model.model_name_or_path, job.model.model_revision, trust_remote_code=trust)
    other = job.reference.reference_model
    reference_source = resolve_model(other, None, trust_remote_code=trust) if other else source
    adapter, reference_adapter = resolve_adapters(job)
    config = load_config(source, trust_remote_code=trust)
    deepspeed = deepspeed_config(job, file, train_group, hidden_size(config))
    check_precision(job, precision, gpu=train_group.gpu)
    check_router(config, job.loss.router_aux_loss_coef)
    policy = plan_model(job, (source, adapter), train_group, precision, config, flops_model(config))
    reference_config, flops = config, policy.planner.flops
    if reference_source != source:
        reference_config = load_config(reference_source, trust_remote_code=trust)
        flops = flops_model(reference_config)
    check_encoder_decoder(job, config, reference_config)
    reference_precision = job.reference_precision(gpu=reference_group.gpu)
    reference = plan_model(
        job, (reference_source, reference_adapter), reference_group, reference_precision, reference_config, flops
    )
    template = read_chat_template(job.model.chat_template)
    tokenizer = load_tokenizer(source, trust_remote_code=trust, chat_template=template)
    images = plan_images(source, tokenizer, job)
    run_dir = RunDir(job.run.output_dir)
    job = dated(job, run_dir, tokenizer)
    seq2seq = seq2seq_text(config)
    if seq2seq is not None:
        check_targets(tokenizer)
    vocabularies = check_models(job, (policy, config), (reference, reference_config), tokenizer)
    models = (tokenizer, policy, reference)
    plan = RunPlan(job, run_dir, *models, pipelined, deepspeed, images, seq2seq, vocabularies)
    plan.notes.add(*overridden)
    return plan


def plan_images(source: ModelSource, tokenizer: PreTrainedTokenizerBase, job: JobConfig) -> ImageProcessing:
    """Return how a model reads images; its tokenizer gets the processor's chat template if it has none."""
    images = load_image_processing(
        source.folder,
        tokenizer,
        trust_remote_code=job.model.trust_remote_code,
        own_template=job.model.chat_template is not None,
    )
    if not tokenizer.chat_template and images.identity.chat_template:
        tokenizer.chat_template = images.identity.chat_template
    return images


def check_models(
    job: JobConfig, policy: tuple[ModelPlan, Any], reference: tuple[ModelPlan, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[Vocabulary, ...]:
    """Check options and tokenizer against the architectures of policy and reference, each with its Hugging Face config.

    Returns the token ids that they have rows for. Raises ModelError where something does not fit.
    """
    trust = job.model.trust_remote_code
    found = [vocabulary(check_model(job, *policy), policy[0].source)]
    if job.scores_reference and reference[0].source != policy[0].source:
        found.append(vocabulary(plan_skeleton(*reference, trust=trust), reference[0].source))
        check_reference_tokenizer(tokenizer, reference[0], trust=trust)
    vocabularies = tuple(one for one in found if one)
    check_special_tokens(tokenizer, vocabularies)
    return vocabularies


def dated(job: JobConfig, run_dir: RunDir, tokenizer: PreTrainedTokenizerBase) -> JobConfig:
    """Return the job with `chat_template_date` set where a chat template writes the date and the job names none."""
    if job.data.chat_template_date or not writes_date(tokenizer):
        return job
    first_day = run_dir.first_day(start_over=job.run.resume_from_checkpoint == "none")
    return dataclasses.replace(job, data=dataclasses.replace(job.data, chat_template_date=first_day))


def is_pipelined(job: JobConfig, train: WorkerGroup, reference: WorkerGroup, nodes: Sequence[Node]) -> bool:
    """Return whether scoring workers run at the same time as train workers.

    Raises ConfigError where the options ask for that and the nodes have no room for both.
    """
    schedule = job.reference.reference_schedule
    if not job.scores_reference or schedule == "staged":
        return False
    fits = resources.fit_together([train, reference], nodes)
    sync = job.reference.sync_ref_model
    if (schedule == "pipelined" or sync) and not fits:
        option = "sync_ref_model=true" if sync else "reference_schedule=pipelined"
        raise ConfigError(
            f"{option} needs room for {train.workers} train workers of {train.gpus:g} GPUs and {train.cpus:g} CPUs and "
            f"for {reference.workers} scoring workers of {reference.gpus:g} and {reference.cpus:g} at the same time; "
            "lower num_workers, reference_num_workers or what each takes, or leave it out"
        )
    return fits


def check_quantization(job: JobConfig) -> None:
    """Raise ConfigError where the reference is to be quantised and bitsandbytes is not installed."""
    quantization = job.reference.reference_quantization
    if quantization and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"reference_quantization={quantization} needs the package bitsandbytes; `pip install bitsandbytes` on "
            "every node, or leave it out"
        )


def resolve_adapters(job: JobConfig) -> tuple[ModelSource | None, ModelSource | None]:
    """Return the adapters that policy and reference start from.

    The reference's default is the policy's adapter, unless reference_model names another base.
    """
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
    """Plan a model (source, adapter) with this Hugging Face config on a group of workers.

    Raises ModelError where the attention that the options ask for does not work there.
    """
    attention = choose(
        config,
        attn_implementation=job.model.attn_implementation,
        share_prompts=job.model.share_prompts,
        gpu=group.gpu,
        dtype=precision,
        max_length=job.data.max_length,
    )
    tokens = job.tokens_per_micro_batch(gpu=group.gpu)
    multiple = -(-tokens // COMPILED_LENGTHS) if job.model.torch_compile else GPU_MULTIPLE if group.gpu else 1
    planner = MicroBatchPlanner(tokens=tokens, flops=flops, padded=not attention.shares, multiple=multiple)
    own_length = follows_own_length(config, job.data.max_length)
    images = storage.absolute(job.data.cache_dir) if is_vision_language(config) else None
    return ModelPlan(*model, group, precision, attention, planner, own_length, images)
