"""Runs TRL's side of the comparison in its own process.

The command is `python -m tests.bench.measure.trl_side TASK.json RESULT.json`. TRL and torch are imported inside the
functions, so that the parent process needs neither.
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
    """The model, data and options of one TRL run."""

    model: str
    rows: str
    output: str
    options: dict[str, Any]
    """Options of DPOConfig."""
    group_equal_keys: bool = False
    """Whether batches contain pairs of similar lengths, in the reference pass too."""
    compact: bool = False
    """Whether only completion tokens are scored, as TRL does on GPUs."""
    warm_up: int = 0
    """Number of pairs to train on before anything is timed."""


@dataclass(frozen=True)
class Result:
    """The measurements that the parent process reads."""

    updates: list[float]
    """Seconds of each update."""
    reference: float | None
    """Seconds that the reference took for all pairs, before or within the updates; None if unknown."""
    precomputed: bool
    """Whether the reference was scored before the updates, whose seconds then do not include it."""
    first_update: float
    """Time at which the first update was done, in seconds since the epoch, minus the duration of the warm-up."""
    history: list[dict[str, Any]]
    """TRL's log_history."""
    padded: float
    """Positions of the training batches, padding included, divided by their tokens."""


def main(task_path: str, result_path: str) -> None:
    """Run the task in the file `task_path`, and write its result to `result_path`."""
    task = Task(**json.loads(Path(task_path).read_text()))
    if task.compact:
        score_completions_only()
    start = time.time()
    if task.warm_up:
        _trainer(task, _rows(task)[: task.warm_up]).train()
        gc.collect()  # so that the memory of the warm-up's models is not counted
    result = _measure(task, time.time() - start)
    Path(result_path).write_text(json.dumps(dataclasses.asdict(result)))


def score_completions_only() -> None:
    """Make TRL's fused head drop prompt and padding on the CPU too, as it does on GPUs with Triton.

    Only `add_fused_lm_head` calls the function that is patched; the kernels have their own check.
    """
    from trl.trainer import utils

    if not hasattr(utils, "_use_triton"):
        raise RuntimeError("trl.trainer.utils has no _use_triton to patch; the patch needs the fused head of TRL 1.16")
    utils._use_triton = lambda device: True


def _rows(task: Task) -> list[dict[str, Any]]:
    """Return the pairs with their length in tokens, by which the sampler groups them; sorted by length if grouped."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rows = [json.loads(line) for line in Path(task.rows).read_text().splitlines()]
    for row in rows:
        row["length"] = max(len(tokenizer(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected"))
    return sorted(rows, key=lambda row: -row["length"]) if task.group_equal_keys else rows


def _trainer(task: Task, rows: list[dict[str, Any]]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from transformers.trainer_pt_utils import get_length_grouped_indices
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Trainer(DPOTrainer):
        """DPOTrainer with a timer around the reference pass, and with length groups as in a large data set."""

        precompute_seconds: float | None = None
        tokens, positions = torch.zeros(()), 0

        def _precompute_ref_logps(self, *arguments: Any, **keywords: Any) -> Any:
            start = time.monotonic()
            scored = super()._precompute_ref_logps(*arguments, **keywords)
            self.precompute_seconds = time.monotonic() - start
            return scored

        def _get_train_sampler(self, *arguments: Any, **keywords: Any) -> Any:
            """Sort all pairs by length; transformers sorts within 50 global batches, but so few only within one."""
            if not task.group_equal_keys:
                return super()._get_train_sampler(*arguments, **keywords)
            dataset: Any = self.train_dataset
            lengths = list(dataset["length"])
            return get_length_grouped_indices(lengths, batch_size=len(lengths), mega_batch_mult=1)

        def _compute_loss(self, model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            self.tokens = self.tokens + inputs["attention_mask"].sum()  # stays a tensor, so as not to wait for the GPU
            self.positions += inputs["attention_mask"].numel()
            return super()._compute_loss(model, inputs, *arguments, **keywords)  # type: ignore[no-untyped-call]

    on_gpu = torch.cuda.is_available()
    grouping = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    options: dict[str, Any] = {**(grouping if task.group_equal_keys else {}), **task.options}
    config = DPOConfig(
        output_dir=task.output,
        use_cpu=not on_gpu,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=on_gpu,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    return Trainer(model=task.model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows))


def _measure(task: Task, warm_up: float) -> Result:
    trainer = _trainer(task, _rows(task))
    ends, reference = _timers(trainer)
    trainer.train()
    precomputed = trainer.precompute_seconds is not None
    return Result(
        updates=[later - earlier for earlier, later in itertools.pairwise(ends)],
        reference=trainer.precompute_seconds if precomputed else sum(reference) or None,
        precomputed=precomputed,
        first_update=ends[1] - warm_up,
        history=[entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        padded=trainer.positions / int(trainer.tokens),
    )


def _timers(trainer: Any) -> tuple[list[float], list[float]]:
    """Return two lists that training fills.

    The first gets the time at which training started and the times at which updates ended. The second gets, for each
    reference forward, minus its start and its end time, so that the sum is the duration. It stays empty without a
    reference model, and on a GPU, where timing would force a synchronisation.
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
