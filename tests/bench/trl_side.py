"""TRL's side, in a process of its own: `python -m tests.bench.trl_side TASK.json RESULT.json`.

TRL and torch are imported inside the functions, so that the parent process needs neither.
"""

import dataclasses
import gc
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """What to train, and how."""

    model: str
    rows: str
    output: str
    options: dict[str, Any]
    """Of DPOConfig."""
    grouped: bool = False
    """True: batches of pairs of like lengths, in the reference's pass too."""
    compact: bool = False
    """True: score completion tokens only, as TRL does on GPUs."""
    warm_up: int = 0
    """Pairs to train on before anything is timed."""


@dataclass(frozen=True)
class Result:
    """What the parent reads."""

    updates: list[float]
    """Seconds of each update."""
    reference: float | None
    """Seconds that the reference took for all pairs: beforehand, or within the updates; None where it is not known."""
    beforehand: bool
    """True where the reference was scored before the updates, whose seconds then do not hold it."""
    first_update: float
    """When the first update was done, in seconds since the epoch, less what the warm-up took."""
    history: list[dict[str, Any]]
    """TRL's log."""
    padded: float
    """Token places of the training batches, padding included, over tokens."""


def main(task_path: str, result_path: str) -> None:
    """Train as the task says, and write the result."""
    task = Task(**json.loads(Path(task_path).read_text()))
    if task.compact:
        score_completions_only()
    began = time.time()
    if task.warm_up:
        _trainer(task, _rows(task)[: task.warm_up]).train()
        gc.collect()  # so that its models are not counted beside those that are measured
    result = _measure(task, time.time() - began)
    Path(result_path).write_text(json.dumps(dataclasses.asdict(result)))


def score_completions_only() -> None:
    """Let the fused head drop prompt and padding on the CPU too, as it does on GPUs with Triton.

    `add_fused_lm_head` asks this one function whether it may; the kernels ask their own.
    """
    from trl.trainer import utils

    if not hasattr(utils, "_use_triton"):
        raise RuntimeError("trl.trainer.utils has no _use_triton to patch: this is not TRL 1.16's fused head")
    utils._use_triton = lambda device: True


def _rows(task: Task) -> list[dict[str, Any]]:
    """The pairs, with their length in tokens, by which the sampler groups them; sorted by it where they are grouped."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rows = [json.loads(line) for line in Path(task.rows).read_text().splitlines()]
    for row in rows:
        row["length"] = max(len(tokenizer(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected"))
    return sorted(rows, key=lambda row: -row["length"]) if task.grouped else rows


def _trainer(task: Task, rows: list[dict[str, Any]]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from transformers.trainer_pt_utils import get_length_grouped_indices
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Trainer(DPOTrainer):
        """DPOTrainer with a clock around the reference's pass, and length groups as large as in a large data set."""

        precompute_seconds: float | None = None
        tokens, places = torch.zeros(()), 0

        def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
            began = time.monotonic()
            scored = super()._precompute_ref_logps(*arguments, **named)
            self.precompute_seconds = time.monotonic() - began
            return scored

        def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
            """transformers sorts within 50 global batches, but of so few pairs as here only within one."""
            if not task.grouped:
                return super()._get_train_sampler(*arguments, **named)
            dataset: Any = self.train_dataset
            lengths = list(dataset["length"])
            return get_length_grouped_indices(lengths, batch_size=len(lengths), mega_batch_mult=1)

        def _compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            self.tokens = self.tokens + inputs["attention_mask"].sum()  # no number yet: a GPU is not waited for
            self.places += inputs["attention_mask"].numel()
            return super()._compute_loss(model, inputs, *arguments, **named)  # type: ignore[no-untyped-call]

    on_gpu = torch.cuda.is_available()
    grouping = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    said: dict[str, Any] = {**(grouping if task.grouped else {}), **task.options}
    config = DPOConfig(
        output_dir=task.output,
        use_cpu=not on_gpu,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=on_gpu,
        **said,
    )
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    return Trainer(model=task.model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows))


def _measure(task: Task, warm_up: float) -> Result:
    trainer = _trainer(task, _rows(task))
    ends, reference = _clocks(trainer)
    trainer.train()
    beforehand = trainer.precompute_seconds is not None
    return Result(
        updates=[later - earlier for earlier, later in itertools.pairwise(ends)],
        reference=trainer.precompute_seconds if beforehand else sum(reference) or None,
        beforehand=beforehand,
        first_update=ends[1] - warm_up,
        history=[entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        padded=trainer.places / int(trainer.tokens),
    )


def _clocks(trainer: Any) -> tuple[list[float], list[float]]:
    """Two lists that training fills: when it began and when each update ended; how long each reference forward took.

    The second stays empty without a reference model, and on a GPU, where a clock would have to stop the work.
    """
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []
    reference: list[float] = []

    def stamp(*_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.time())

    class Stamps(TrainerCallback):
        on_train_begin = on_step_end = staticmethod(stamp)

    trainer.add_callback(Stamps())
    if trainer.ref_model is not None and not torch.cuda.is_available():
        trainer.ref_model.register_forward_pre_hook(lambda *_: reference.append(-time.monotonic()))
        trainer.ref_model.register_forward_hook(lambda *_: reference.append(time.monotonic()))
    return ends, reference


if __name__ == "__main__":
    main(*sys.argv[1:])
