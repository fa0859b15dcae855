"""The proof that an export is the model that was trained: the folder is loaded anew, by transformers and peft alone.

Before the export, the policy computes the log-probs of a few short sequences as it does in training. Afterwards the
folder is loaded as a user would load it, and its own forward with full logits must give the same.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from raydpo.batching.collate import split_by_completion
from raydpo.blocks.schema import FloatArray, IntArray
from raydpo.errors import ModelError
from raydpo.models.carried import CarriedWeights
from raydpo.models.checkpoint_keys import checkpoint_keys
from raydpo.models.comparison import mean_gap, spread_of, without_compilation
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.export import shapes_to_export
from raydpo.models.loading import load_causal_lm
from raydpo.models.own_forward import OwnForward
from raydpo.models.probe_sequences import ProbeSequences
from raydpo.models.seq2seq import is_encoder_decoder
from raydpo.models.source import ModelSource, local_folder, resolve_model, weight_files

TOLERANCES = {"float32": (1e-4, 1e-5), "bfloat16": (0.1, 0.02), "float16": (0.03, 5e-3)}
"""Tolerance by dtype, as (share of the spread of the logits, nats): what other kernels, shapes of batches and devices
change, as in `forward_check`. The spread is the standard deviation of the logits over the vocabulary."""
MEMORY_SHARE = 0.25
"""Largest share of the free memory of the host that the loaded export may take."""
MOST_BYTES = 40 * 2**30
"""Largest size of an export that is loaded whole: reading it and a forward on the CPU take some minutes at most."""


@dataclass(frozen=True)
class ExportCheck:
    """The result of the proof, for the console and summary.json."""

    loaded: str
    """"whole", or "names and shapes" where the model would not fit into the memory of the host."""
    gap: float | None
    """Largest mean |difference| of a sequence's log-probs, in nats per token; None where the weights were not read."""
    tolerance: float | None
    """Largest gap that passes, in nats per token."""
    carried: str = ""
    """Which weights that the class does not load the export carries, as a sentence; empty if there are none."""
    notes: tuple[str, ...] = ()
    """How names were changed when model and adapter were loaded, as sentences."""

    def summary(self) -> dict[str, Any]:
        """Return the fields as a mapping for summary.json."""
        return asdict(self)


@dataclass(frozen=True)
class TrainedLogps:
    """Short sequences, and what the trained policy says of them."""

    sequences: ProbeSequences
    values: list[FloatArray]
    """Log-probs [tokens] of each completion of the sequences, in order."""


@dataclass(frozen=True)
class Exported:
    """An export, and how to load it."""

    folder: str
    source: ModelSource
    """The model that training started from."""
    adapter: bool
    """Whether the folder holds an adapter of the source."""
    dtype: str
    """A key of `TOLERANCES`."""
    trust_remote_code: bool


@torch.no_grad()
def trained_logps(policy: CompletionLogps, run: nn.Module, *, multiple: int = 1) -> TrainedLogps:
    """Return the policy's log-probs of short sequences, computed by `run`: the policy, or the engine around it.

    All ranks call it, as a forward under ZeRO-3 needs all of them. `multiple` is that of packed rows.
    """
    sequences = ProbeSequences.draw(policy.causal_lm.config, policy.vocabulary)
    batch = sequences.micro_batch(multiple=multiple if policy.shares else 1)
    run.eval()
    with without_compilation(policy):
        values = run(batch)[0].float().cpu().numpy()
    return TrainedLogps(sequences, [part for tree in split_by_completion(values, sequences.trees) for part in tree])


@torch.no_grad()
def check_export(
    exported: Exported, trained: TrainedLogps, model: PreTrainedModel, *, free_bytes: Callable[[], int] | None = None
) -> ExportCheck:
    """Load an export anew and compare its log-probs with those of the policy. One rank calls it.

    `model` is the transformers model that was trained, without its adapter; its weights are not used. Where the weights
    do not fit into `MEMORY_SHARE` of the host's free memory, names and shapes are compared with config.json alone.
    Raises ModelError where the export lacks weights, or where its log-probs differ by more than the tolerance.
    """
    source = resolve_model(exported.folder, None) if not exported.adapter else exported.source
    size = sum(map(os.path.getsize, weight_files(local_folder(source))))
    if size > min(MOST_BYTES, MEMORY_SHARE * (free_bytes or free_memory)()):
        if not exported.adapter:
            _check_shapes(exported.folder, model, exported.source)
        return ExportCheck("names and shapes", None, None)
    loaded = _load(exported, source)
    gaps, spreads = [], []
    parts = [(tree.prompt, completion) for tree in trained.sequences.trees for completion in tree.completions]
    for (prompt, completion), ours in zip(parts, trained.values, strict=True):
        theirs, spread = _own_logps(loaded, prompt, completion)
        gaps.append(mean_gap(ours, theirs))
        spreads.append(spread)
    gap = max(gaps)
    share, nats = TOLERANCES[exported.dtype]
    tolerance = share * max(spreads) + nats
    if not gap <= tolerance:
        kind = "adapter" if exported.adapter else "model"
        raise ModelError(
            f"the {kind} in {exported.folder}, loaded anew, gives other log-probs "
            f"than the trained policy: {gap:.2g} nats per token, more than {tolerance:.2g} in {exported.dtype}; its "
            "files and the checkpoints are kept: check the disk, then run the same command again to export anew"
        )
    return ExportCheck("whole", gap, tolerance)


def free_memory() -> int:
    """Return the bytes of memory that are free on the host, or in the container that this process runs in."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo") as memory:
            (available,) = (line.split()[1] for line in memory if line.startswith("MemAvailable"))
        free = int(available) * 1024
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            return min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # another system, or no container, or one without a limit ("max")
        return free


def _load(exported: Exported, source: ModelSource) -> Any:
    """Return the export as a user loads it. Raises ModelError where its names are not those that its class has."""
    loaded: Any = load_causal_lm(
        source, dtype=exported.dtype, attn_implementation=None, trust_remote_code=exported.trust_remote_code
    )
    keys = checkpoint_keys(loaded)
    if exported.adapter:
        from peft import PeftModel  # imported here for the reason given in `adapters.add_lora`

        adapted = PeftModel.from_pretrained(loaded, exported.folder, autocast_adapter_dtype=False).eval()
        return adapted.get_base_model()  # with the adapter's layers in it
    if keys and keys.renaming:
        raise ModelError(
            f"the weights in {exported.folder} have other names than {type(loaded).__name__} loads: {keys.renaming}; "
            "please report it"
        )
    return loaded.eval()


def _own_logps(model: Any, prompt: IntArray, completion: IntArray) -> tuple[FloatArray, float]:
    """Return the log-probs [tokens] of a completion by the model's own forward, and the spread of its logits."""
    targets = torch.from_numpy(np.asarray(completion)).long()
    before = torch.from_numpy(np.asarray(prompt)).long()
    own = OwnForward(model, path="")
    if is_encoder_decoder(model.config):
        logits = own.logits({"input_ids": before[None], "labels": targets[None]})[0]
    else:
        logits = own.logits({"input_ids": torch.cat([before, targets])[None]})[0, len(before) - 1 : -1]
    logits = logits.float()
    logps = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    values: FloatArray = logps.numpy()
    return values, spread_of(logits)


def _check_shapes(folder: str, model: PreTrainedModel, source: ModelSource) -> None:
    """Raise ModelError unless the files have each weight, in its shape, of the model that config.json describes."""
    architecture: Any = type(model)
    with torch.device("meta"):
        described = architecture(architecture.config_class.from_pretrained(folder))
    described._weight_conversions = model._weight_conversions
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found.update((name, tuple(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    for name, shape in shapes_to_export(described, CarriedWeights(model, source)).items():
        if found.get(name) != shape:
            raise ModelError(
                f"the weight {name} in {folder} has the shape {found.get(name)} and not {shape}, which config.json "
                "describes; its files are kept: check the disk, then run the same command again to export anew"
            )
