"""The cases in which raydpo is compared with TRL, and the code that runs a case on both sides with the same options."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.jobs import Run, rows, write_rows
from tests.parity import trl_side


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Return pairs whose completions differ slightly in length.

    A log-prob grows with length: with very different lengths, policy and reference would sort the pairs in the same
    order, and aot, which sorts by both, would equal sigmoid.
    """
    return rows(count, seed, words=(4, 5))


ROWS = pairs(20, seed=3)
HELD_OUT = pairs(5, seed=4)
BETA = 0.3
OPTIONS: dict[str, Any] = {
    "beta": BETA,
    "learning_rate": 5e-4,
    "max_grad_norm": 0.5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "sequential",
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
}
"""Options of both sides in all cases: five updates of four pairs, in the order of the rows."""
ON_RAY = {"num_workers": 1, "zero_stage": 0, "cpus_per_worker": 1, "max_failures": 1}
"""Options of raydpo's side only; none of them changes a number."""


@dataclass(frozen=True)
class Case:
    """One comparison: the job, and the options that both sides take in addition to OPTIONS."""

    job: str
    options: dict[str, Any]


def dpo(*loss_type: str, **options: Any) -> Case:
    """Return a case of the job dpo, which TRL runs with DPOTrainer."""
    return Case("dpo", {"loss_type": list(loss_type), **options})


PLAIN = (
    "sigmoid hinge ipo nca_pair bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm".split()
)
CASES = {
    **{name: dpo(name) for name in PLAIN},
    "exo_pair": dpo("exo_pair", label_smoothing=1e-3),
    "robust": dpo("robust", label_smoothing=0.1),
    "forward_kl": dpo("sigmoid", f_divergence_type="forward_kl"),
    "js_divergence": dpo("sigmoid_norm", f_divergence_type="js_divergence"),
    "alpha_divergence": dpo("sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7),
    "ld_alpha": dpo("sigmoid", ld_alpha=0.5),
    "use_weighting": dpo("sigmoid", use_weighting=True),
    "sigmoid, bco_pair and sft": dpo("sigmoid", "bco_pair", "sft", loss_weights=[0.8, 0.2, 1.0]),
    "aot and ipo": dpo("aot", "ipo", loss_weights=[0.5, 2.0]),
    "orpo": Case("orpo", {}),
    "simpo": Case("cpo", {"loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.0}),
    "cpo": Case("cpo", {"loss_type": "sigmoid"}),
    "cpo's ipo": Case("cpo", {"loss_type": "ipo"}),
}


@dataclass(frozen=True)
class Sides:
    """The models and folders of both sides.

    The runs of raydpo share one cache, so that the reference is scored once, and no run is made twice.
    """

    policy: Path
    reference: Path
    folder: Path
    runs: dict[str, Run] = field(default_factory=dict)

    def raydpo_run(self, name: str, **changes: Any) -> Run:
        """Return raydpo's run of a case with changed options; evaluations use HELD_OUT."""
        key = f"{name} {changes}"
        if key not in self.runs:
            self.runs[key] = self._run(CASES[name], changes)
        return self.runs[key]

    def _run(self, case: Case, changes: dict[str, Any]) -> Run:
        from raydpo import config, pipeline

        output = Path(tempfile.mkdtemp(dir=self.folder))
        paths: dict[str, Any] = {
            "model_name_or_path": str(self.policy),
            "dataset_name": write_rows(self.folder / "pairs.jsonl", ROWS),
            "cache_dir": str(self.folder / "cache"),
            "output_dir": str(output),
        }
        if case.job == "dpo":
            paths["reference_model"] = str(self.reference)
        if "eval_strategy" in changes:
            paths["eval_dataset_name"] = write_rows(self.folder / "held-out.jsonl", HELD_OUT)
        options = {**ON_RAY, **paths, **OPTIONS, **case.options, **changes}
        return Run(pipeline.run(config.from_flat(options, case.job)), output)

    def trl_log(self, name: str, **changes: Any) -> list[dict[str, Any]]:
        """Return TRL's log of a case with changed options, one entry per update or evaluation."""
        case = CASES[name]
        folders = {"policy": self.policy, "reference": self.reference, "output": self.folder / "trl"}
        data = {"train": ROWS, **({"eval": HELD_OUT} if "eval_strategy" in changes else {})}
        history = trl_side.train(case.job, folders, data, {**OPTIONS, **case.options, **changes})
        return [entry for entry in history if "train_runtime" not in entry]
