"""The plan of how a model computes in this run: its source, workers, dtype, attention and micro-batches.

This file imports neither torch nor ray: Ray Train's controller unpickles the plan, and those imports would delay it.
"""

from dataclasses import dataclass

from raydpo.batching.planner import MicroBatchPlanner
from raydpo.models.attention.choice import AttentionChoice
from raydpo.models.source import ModelSource
from raydpo.runtime.resources import WorkerGroup


@dataclass(frozen=True)
class ModelPlan:
    """How the policy or the reference computes in this run."""

    source: ModelSource
    adapter: ModelSource | None
    """LoRA adapter on the model; for the policy, the one that training continues. None without one."""
    group: WorkerGroup
    """The workers that hold the model."""
    precision: str
    """dtype of the computation: float32, bfloat16 or float16."""
    attention: AttentionChoice
    planner: MicroBatchPlanner
    """Groups pairs into micro-batches within the token budget."""
    own_length: bool = False
    """Whether the model's rotary factors depend on a sequence's length, and therefore follow each row's own."""
    images: str | None = None
    """cache_dir, where what the processor made of images lies, for a vision-language model; None for others."""

    @property
    def gpu(self) -> bool:
        """Whether the workers compute on GPUs."""
        return self.group.gpu

    @property
    def display_name(self) -> str:
        """Name of the model and of its adapter, for messages."""
        name = self.source.display_name
        return f"{name} with {self.adapter.display_name}" if self.adapter else name

    @property
    def summary_line(self) -> str:
        """One line for the log: row layout, attention, dtype and token budget."""
        rows = "packed rows with shared prompts" if self.attention.shares else "one padded row per completion"
        rope = "rotary factors of each sequence's own length; " if self.own_length else ""
        return (
            f"{rows}, {self.attention.backend} attention ({self.attention.reason}); {rope}{self.precision}, up to "
            f"{self.planner.tokens:,} tokens per forward"
        )
