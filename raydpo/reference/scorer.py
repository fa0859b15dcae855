"""The actor that scores blocks: one copy of the reference model on GPUs of its own."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raydpo.batching.collate import collate
from raydpo.models.device import device
from raydpo.models.load import load_causal_lm, quiet_libraries
from raydpo.models.logprobs import CompletionLogps
from raydpo.models.source import ModelSource
from raydpo.reference.store import TokenizedBlock, write_scores
from raydpo.schema import FloatArray, MicroBatch


@dataclass(frozen=True)
class ScorerSpec:
    """What an actor needs to load the reference."""

    source: ModelSource
    dtype: str
    attn_implementation: str | None
    trust_remote_code: bool
    gpu: bool
    """True where each actor has a GPU."""
    batch_pairs: int
    """Pairs a forward (`precompute_ref_batch_size`)."""


class Scorer:
    """Scores one block a call; a callable class, as Ray Data's actor pool takes it."""

    def __init__(self, spec: ScorerSpec) -> None:
        """Load the model, on the GPU that Ray gave this actor or on the CPU."""
        quiet_libraries()
        self._batch_pairs = spec.batch_pairs
        self._device = device(spec.gpu)
        model = load_causal_lm(
            spec.source,
            dtype=spec.dtype,
            attn_implementation=spec.attn_implementation,
            trust_remote_code=spec.trust_remote_code,
        )
        self._model = CompletionLogps(model).to(self._device).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the one block that the batch's columns `tokenized_url` and `scores_url` name, and write its file."""
        started = time.monotonic()
        block = TokenizedBlock(str(batch["tokenized_url"][0]))
        chosen, rejected = self.score(block)
        write_scores(str(batch["scores_url"][0]), chosen, rejected)
        return {"pairs": np.array([len(block)]), "seconds": np.array([time.monotonic() - started])}

    @torch.inference_mode()
    def score(self, block: TokenizedBlock) -> tuple[list[FloatArray], list[FloatArray]]:
        """Log-probs of each token of the chosen and of the rejected completions, row by row."""
        pairs = [block.pair(row) for row in range(len(block))]
        longest_first = sorted(range(len(pairs)), key=lambda row: -pairs[row].length)  # so that little is padded
        chosen: list[FloatArray] = [np.zeros(0, dtype=np.float32)] * len(pairs)
        rejected = list(chosen)
        for first in range(0, len(pairs), self._batch_pairs):
            rows = longest_first[first : first + self._batch_pairs]
            micro_batch = collate([pairs[row] for row in rows])
            completions = self._completions(micro_batch)
            for position, row in enumerate(rows):
                chosen[row], rejected[row] = completions[position], completions[position + len(rows)]
        return chosen, rejected

    def _completions(self, micro_batch: MicroBatch) -> list[FloatArray]:
        """The log-probs of one forward, cut into the 2B completions."""
        on_device = [
            torch.from_numpy(array).to(self._device)
            for array in (
                micro_batch.input_ids,
                micro_batch.attention_mask,
                micro_batch.predictors,
                micro_batch.targets,
            )
        ]
        logps: FloatArray = self._model(*on_device)[0].cpu().numpy()
        ends = np.cumsum(np.bincount(micro_batch.completion, minlength=2 * micro_batch.pairs))
        return np.split(logps, ends[:-1])
