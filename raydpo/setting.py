"""What a run settles before its first stage, so that most of what can go wrong does so at once."""

from dataclasses import dataclass

import ray
from transformers import PreTrainedTokenizerBase

from raydpo import placement
from raydpo.config import JobConfig
from raydpo.models.load import load_config, load_tokenizer
from raydpo.models.router import check_router
from raydpo.models.source import ModelSource, resolve_model
from raydpo.placement import Group
from raydpo.reporting.rundir import RunDir
from raydpo.reporting.trackers import check_trackers
from raydpo.training.zero import zero_config


@dataclass(frozen=True)
class Setting:
    """What all stages share."""

    job: JobConfig
    run_dir: RunDir
    source: ModelSource
    """The policy's starting weights."""
    reference: ModelSource
    tokenizer: PreTrainedTokenizerBase
    train_group: Group
    reference_group: Group

    @property
    def gpu(self) -> bool:
        """True where the policy trains on GPUs."""
        return self.train_group.gpus > 0

    @property
    def precision(self) -> str:
        """Type that the policy computes in."""
        return self.job.precision(gpu=self.gpu)


def settle(job: JobConfig) -> Setting:
    """Check what can be checked before work starts, and lay out the run's folder.

    `output_dir` and `model_name_or_path` must be set. Raises the error that fits what is wrong.
    """
    check_trackers(job)
    assert job.run.output_dir, "the command line sets it"
    assert job.model.model_name_or_path, "the command line sets it"
    nodes = placement.nodes_of(ray.nodes())
    train_group, reference_group = placement.train_group(job, nodes), placement.reference_group(job, nodes)
    gpu = train_group.gpus > 0
    zero_config(job, job.precision(gpu=gpu), gpu=gpu)  # reads the file that `deepspeed` names
    trust = job.model.trust_remote_code
    source = resolve_model(job.model.model_name_or_path, job.model.model_revision, trust_remote_code=trust)
    other = job.reference.reference_model
    reference = resolve_model(other, None, trust_remote_code=trust) if other else source
    check_router(load_config(source, trust_remote_code=trust), job.loss.router_aux_loss_coef)
    if reference != source:
        load_config(reference, trust_remote_code=trust)  # for its checks
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    run_dir = RunDir(job.run.output_dir)
    run_dir.start(job)
    return Setting(job, run_dir, source, reference, tokenizer, train_group, reference_group)
