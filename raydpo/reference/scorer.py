"""The actor that scores blocks: one copy of the reference model on GPUs of its own."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raydpo.batching.collate import by_pair, collate
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block, FloatArray
from raydpo.errors import ModelError
from raydpo.models.adapters import load_adapter
from raydpo.models.attention.choice import AttentionChoice
from raydpo.models.compile import compile_layers
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.device import device
from raydpo.models.loading import load_causal_lm, quiet_libraries
from raydpo.models.source import ModelSource
from raydpo.reference.dedup import (
    CHOSEN,
    NOTHING_REUSED,
    REJECTED,
    Place,
    ReusedScores,
    UniqueCompletions,
    unique_completions,
)
from raydpo.reference.store import ReferenceStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScorerSpec:
    """What an actor needs to load the reference."""

    source: ModelSource
    adapter: ModelSource | None
    """A LoRA adapter on it."""
    dtype: str
    attention: AttentionChoice
    trust_remote_code: bool
    quantization: str | None
    """8bit or 4bit; None keeps the type."""
    gpus: float
    """Of each actor; a model is spread over several. 0: it computes on the CPU."""
    planner: MicroBatchPlanner
    """What a forward takes."""
    logits_chunk_tokens: int | None
    torch_compile: bool

    @property
    def device_map(self) -> str | dict[str, int | str] | None:
        """Where transformers is to load the model; None where it is moved to its device afterwards."""
        if self.gpus > 1:
            return "auto"
        return {"": 0 if self.gpus else "cpu"} if self.quantization else None


FEWEST_TOKENS = 64
"""Tokens of a forward below which less memory is no longer worth a try."""


@dataclass(frozen=True)
class ScoringResult:
    """What a scorer says of a block that it has scored."""

    pairs: int
    forwards: int
    completions: int
    """Computed: one that stands in several pairs counts once, and not at all where another block has it."""
    tokens: int
    """Tokens of a forward for which there was memory."""


class Scorer:
    """Scores one block a call."""

    def __init__(self, spec: ScorerSpec) -> None:
        """Takes no time: `load` does."""
        self._spec = spec

    def load(self) -> None:
        """Load the model, on the GPU that Ray gave this actor or on the CPU."""
        quiet_libraries()
        spec = self._spec
        where = device(spec.gpus > 0)
        model: Any = load_causal_lm(
            spec.source,
            dtype=spec.dtype,
            attn_implementation=spec.attention.implementation,
            trust_remote_code=spec.trust_remote_code,
            quantization=spec.quantization,
            device_map=spec.device_map,
        )
        if spec.adapter:
            model = load_adapter(model, spec.adapter, trainable=False)
        if spec.torch_compile:
            compile_layers(model, bounded=spec.attention.shares)
        policy = CompletionLogps(model, shares=spec.attention.shares, chunk_tokens=spec.logits_chunk_tokens).eval()
        self._model = policy if spec.device_map else policy.to(where)

    def score_block(
        self, block: Block, store: ReferenceStore, tokens: int, loans: ReusedScores = NOTHING_REUSED
    ) -> ScoringResult:
        """Score a block in forwards of up to `tokens` tokens, and write its file; half as many where memory lacks.

        With `loans` it is the file of a part, without what these name. ModelError where there is not memory enough for
        any forward.
        """
        tokenized = TokenizedBlock(block)
        different = unique_completions([tokenized.pair(row) for row in range(len(tokenized))], loans)
        while True:
            try:
                logps, forwards = self._score(different, tokens)
                break
            except torch.OutOfMemoryError as error:
                if tokens < 2 * FEWEST_TOKENS:
                    raise ModelError(
                        f"the reference has no memory for a forward of {tokens} tokens ({str(error).splitlines()[0]}); "
                        "give scorers GPUs with more memory, or lower max_length or logits_chunk_tokens"
                    ) from error
                tokens //= 2
                _log.warning("Too little memory: the reference goes on with %d tokens a forward.", tokens)
            torch.cuda.empty_cache()  # after the error, whose traceback held tensors
        none = np.zeros(0, dtype=np.float32)
        sides = ([logps.get((row, side), none) for row in range(len(tokenized))] for side in (CHOSEN, REJECTED))
        write_scores(store.part_url(block) if loans.source_blocks else store.url(block), *sides)
        return ScoringResult(len(tokenized), forwards, different.completions, tokens)

    @torch.inference_mode()
    def _score(self, different: UniqueCompletions, tokens: int) -> tuple[dict[Place, FloatArray], int]:
        """Log-probs of each token of the completions, by each place of theirs; number of forwards."""
        pairs, logps = different.pairs, dict[Place, FloatArray]()
        if not pairs:
            return logps, 0
        planner = dataclasses.replace(self._spec.planner, tokens=tokens)
        (micro_batches,) = planner.split(pairs, ranks=1)
        for trees in micro_batches:
            micro_batch = collate(trees, pairs, multiple=planner.multiple)
            found: FloatArray = self._model(micro_batch)[0].cpu().numpy()
            for index, sides in by_pair(found, trees, micro_batch).items():
                for side, places in zip(sides, different.places[index], strict=True):
                    logps.update(dict.fromkeys(places, side))
        return logps, len(micro_batches)
