"""The actor that scores blocks: one copy of the reference model on GPUs of its own."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raydpo.batching.collate import by_pair, collate
from raydpo.batching.cut import Cut
from raydpo.models.attention import AttentionChoice
from raydpo.models.compile import compile_layers
from raydpo.models.device import device
from raydpo.models.load import load_causal_lm, quiet_libraries
from raydpo.models.logprobs import CompletionLogps
from raydpo.models.source import ModelSource
from raydpo.reference.store import TokenizedBlock, write_scores
from raydpo.schema import FloatArray


@dataclass(frozen=True)
class ScorerSpec:
    """What an actor needs to load the reference."""

    source: ModelSource
    dtype: str
    attention: AttentionChoice
    trust_remote_code: bool
    gpu: bool
    """True where each actor has a GPU."""
    cut: Cut
    """What a forward takes."""
    logits_chunk_tokens: int | None
    torch_compile: bool


class Scorer:
    """Scores one block a call; a callable class, as Ray Data's actor pool takes it."""

    def __init__(self, spec: ScorerSpec) -> None:
        """Load the model, on the GPU that Ray gave this actor or on the CPU."""
        quiet_libraries()
        self._cut = spec.cut
        where = device(spec.gpu)
        model = load_causal_lm(
            spec.source,
            dtype=spec.dtype,
            attn_implementation=spec.attention.implementation,
            trust_remote_code=spec.trust_remote_code,
        )
        if spec.torch_compile:
            compile_layers(model, bounded=spec.attention.shares)
        policy = CompletionLogps(model, shares=spec.attention.shares, chunk_tokens=spec.logits_chunk_tokens)
        self._model = policy.to(where).eval()

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
        (micro_batches,) = self._cut.of(pairs, ranks=1)
        chosen: list[FloatArray] = [np.zeros(0, dtype=np.float32)] * len(pairs)
        rejected = list(chosen)
        for trees in micro_batches:
            micro_batch = collate(trees, pairs, multiple=self._cut.multiple)
            logps: FloatArray = self._model(micro_batch)[0].cpu().numpy()
            for row, sides in by_pair(logps, trees, micro_batch).items():
                chosen[row], rejected[row] = sides
        return chosen, rejected
