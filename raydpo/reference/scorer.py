"""The scoring worker: an actor with a copy of the reference model, on GPUs of its own or on the CPU."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raydpo.batching.collate import collate, split_by_completion
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.batching.prefix_tree import PromptTree, build_completion_trees
from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block, FloatArray
from raydpo.errors import ModelError
from raydpo.models.adapters import load_adapter
from raydpo.models.compile import compile_layers
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.device import device
from raydpo.models.forward_check import CheckedModel, ForwardCheck, check_forward
from raydpo.models.images.reader import open_images
from raydpo.models.loading import load_causal_lm, quiet_libraries
from raydpo.models.plan import ModelPlan
from raydpo.reference.dedup import (
    CHOSEN,
    NOTHING_REUSED,
    REJECTED,
    Place,
    PromptCompletions,
    ReusedScores,
    unique_completions,
)
from raydpo.reference.store import ReferenceStore

_log = logging.getLogger(__name__)

SIDES = {CHOSEN: "chosen", REJECTED: "rejected"}
MIN_TOKENS = 64
"""Token budget of a forward below which a scoring worker gives up, instead of halving it once more."""


@dataclass(frozen=True)
class ScorerSpec:
    """What a scoring worker needs to load the reference."""

    model: ModelPlan
    trust_remote_code: bool
    quantization: str | None
    """8bit or 4bit; None keeps the dtype."""
    logits_chunk_tokens: int | None
    torch_compile: bool

    @property
    def device_map(self) -> str | dict[str, int | str] | None:
        """Where transformers loads the model; None where it is moved to its device afterwards."""
        gpus = self.model.group.gpus
        if gpus > 1:
            return "auto"
        return {"": 0 if gpus else "cpu"} if self.quantization else None


@dataclass(frozen=True)
class ScoringResult:
    """What a scoring worker reports of a block."""

    pairs: int
    forwards: int
    completions: int
    """Number of completions computed: one that stands in several pairs counts once, and a reused one not at all."""
    tokens: int
    """Token budget of a forward for which there was enough memory."""


class Scorer:
    """Scores one block per call."""

    def __init__(self, spec: ScorerSpec) -> None:
        """Keep the spec; `load` loads the model."""
        self._spec = spec

    def load(self) -> ForwardCheck:
        """Load the model, on the GPUs that Ray gave this actor or on the CPU, and prove its forward.

        Raises ModelError where its log-probs are not those of the model's own forward.
        """
        quiet_libraries()
        spec, plan = self._spec, self._spec.model
        target = device(plan.gpu)
        model: Any = load_causal_lm(
            plan.source,
            dtype=plan.precision,
            attn_implementation=plan.attention.implementation,
            trust_remote_code=spec.trust_remote_code,
            quantization=spec.quantization,
            device_map=spec.device_map,
        )
        if plan.adapter:
            model = load_adapter(model, plan.adapter, trainable=False)
        if spec.torch_compile:
            compile_layers(model, bounded=plan.attention.shares)
        reference = CompletionLogps(
            model,
            shares=plan.attention.shares,
            chunk_tokens=spec.logits_chunk_tokens,
            images=open_images(plan.images),
        ).eval()
        reference.requires_grad_(False)
        self._model = reference if spec.device_map else reference.to(target)
        dtype, multiple = "quantized" if spec.quantization else plan.precision, plan.planner.multiple
        check = check_forward(CheckedModel(self._model, self._model, dtype, trains=False, multiple=multiple))
        self._padded = check.layout == "padded"
        return check

    def score_block(
        self, block: Block, store: ReferenceStore, tokens: int, reused: ReusedScores = NOTHING_REUSED
    ) -> ScoringResult:
        """Score a block in forwards of up to `tokens` tokens, and write its file; halve `tokens` where memory lacks.

        With `reused`, the file is that of a part, without the scores that `reused` names. Raises ModelError where the
        memory is too small for any forward, and where a log-prob is not finite: no such score is stored.
        """
        tokenized = TokenizedBlock(block)
        unique = unique_completions([tokenized.pair(row) for row in range(len(tokenized))], reused)
        while True:
            try:
                logps, forwards = self._score(unique, tokens)
                break
            except torch.OutOfMemoryError as error:
                if tokens < 2 * MIN_TOKENS:
                    raise ModelError(
                        f"the reference has no memory for a forward of {tokens} tokens ({str(error).splitlines()[0]}); "
                        "give scoring workers GPUs with more memory, or lower max_length or logits_chunk_tokens"
                    ) from error
                tokens //= 2
                _log.warning("Out of memory: the reference continues with %d tokens per forward.", tokens)
            torch.cuda.empty_cache()  # only now, as the error's traceback kept tensors alive
        _check_finite(logps, tokenized, self._spec)
        none = np.zeros(0, dtype=np.float32)
        sides = ([logps.get((row, side), none) for row in range(len(tokenized))] for side in (CHOSEN, REJECTED))
        write_scores(store.part_url(block) if reused.source_blocks else store.url(block), *sides)
        completions = sum(len(entry.completions) for entry in unique)
        return ScoringResult(len(tokenized), forwards, completions, tokens)

    @torch.inference_mode()
    def _score(self, unique: Sequence[PromptCompletions], tokens: int) -> tuple[dict[Place, FloatArray], int]:
        """Return the log-prob of each token of the completions, by each of their places; and the number of forwards."""
        planner = dataclasses.replace(self._spec.model.planner, tokens=tokens, padded=self._padded)
        trees, places = _build_trees(unique, planner)
        logps = dict[Place, FloatArray]()
        if not trees:
            return logps, 0
        (groups,) = planner.plan(trees, ranks=1)
        for group in groups:
            members = [trees[index] for index in group]
            micro_batch = collate(members, pairs=(), multiple=planner.multiple)
            values: FloatArray = self._model(micro_batch)[0].cpu().numpy()
            for index, parts in zip(group, split_by_completion(values, members), strict=True):
                for part, where in zip(parts, places[index], strict=True):
                    logps.update(dict.fromkeys(where, part))
        return logps, len(groups)


def _check_finite(logps: Mapping[Place, FloatArray], block: TokenizedBlock, spec: ScorerSpec) -> None:
    """Raise ModelError, with the row, where the log-prob of a token is infinite or not a number."""
    for (row, side), values in logps.items():
        if not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)][0]
            raise ModelError(
                f"the reference {spec.model.display_name!r} gives the {SIDES[side]} completion of row "
                f"{block.pair_ids[row]} a log-prob of {wrong} in {spec.model.precision}; set reference_dtype=float32 "
                "(or bfloat16 instead of float16), check the reference's weights, or remove the row if it has a token "
                "that the reference cannot predict"
            )


def _build_trees(
    unique: Sequence[PromptCompletions], planner: MicroBatchPlanner
) -> tuple[list[PromptTree], list[list[list[Place]]]]:
    """Return the trees of a block's completions and, for each tree, the places of each of its completions."""
    trees: list[PromptTree] = []
    places: list[list[list[Place]]] = []
    for entry in unique:
        built = build_completion_trees(
            entry.prompt, entry.completions, planner.tokens, one_pair=planner.padded, images=entry.images
        )
        remaining = iter(entry.places)
        trees += built
        places += [[next(remaining) for _ in tree.completions] for tree in built]
    return trees, places
