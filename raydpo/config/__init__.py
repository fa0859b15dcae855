"""The options of a run: one frozen dataclass per concern, collected in `JobConfig`.

Names and defaults are those of TRL's DPOConfig, ModelConfig and ScriptArguments and of Hugging Face's
TrainingArguments where those have them; where a default or a meaning differs, the option's help says so.
"""

from raydpo.config.data import DataConfig
from raydpo.config.job import HINTS, SECTIONS, JobConfig
from raydpo.config.loss import LossConfig
from raydpo.config.optim import SCHEDULERS, OptimConfig
from raydpo.config.parsing import (
    FLAGS,
    JOBS,
    ParsedOptions,
    from_flat,
    help_text,
    parse,
    parse_options,
    to_flat,
    to_yaml,
)
from raydpo.config.reference import BASE, ReferenceConfig
from raydpo.config.sections import (
    AdapterConfig,
    ClusterConfig,
    ModelConfig,
    RunConfig,
)

__all__ = [
    "BASE",
    "FLAGS",
    "HINTS",
    "JOBS",
    "SCHEDULERS",
    "SECTIONS",
    "AdapterConfig",
    "ClusterConfig",
    "DataConfig",
    "JobConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ParsedOptions",
    "ReferenceConfig",
    "RunConfig",
    "from_flat",
    "help_text",
    "parse",
    "parse_options",
    "to_flat",
    "to_yaml",
]
