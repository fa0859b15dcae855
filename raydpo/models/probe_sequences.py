"""Short sequences of random tokens with which a model's log-probs are compared with those of its own forward."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.batching.collate import collate
from raydpo.batching.micro_batch import MicroBatch
from raydpo.batching.prefix_tree import PromptTree
from raydpo.blocks.schema import IntArray
from raydpo.models.attention.choice import PROVABLE_WINDOW, short_and_long_windows
from raydpo.models.rope_limit import rope_limit

SEED = 20_260_101
"""Seed of the token ids: the same on all ranks and in every run."""
PROMPT, COMPLETION, LONG, BEGINNING = 7, 9, 40, 3
"""Number of tokens of both prompts, of the first prompt's two completions, of the second prompt's long completion, and
of that one's beginning, which is its other completion."""
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings")
"""Names of the number of positions in configs."""


@dataclass(frozen=True)
class ProbeSequences:
    """Two completions of one prompt, and a long completion of another with the beginning of the long one."""

    prompt: IntArray
    completions: tuple[IntArray, IntArray]
    """Both have one length, so that the model's own forward takes both in one batch without padding."""
    other_prompt: IntArray
    long: IntArray

    @staticmethod
    def draw(config: Any, vocabulary: int, longest: int | None = None, *, apart: bool = False) -> "ProbeSequences":
        """Draw the sequences for a model with this Hugging Face config and number of entries of the vocabulary.

        No sequence has more than `longest` tokens (None: no limit), nor more than the model has positions. `apart` is
        for encoder-decoders, which read prompts and completions apart: the other prompt is the long one. Special tokens
        and those that stand for images or sounds are left out.
        """
        draw = np.random.default_rng(SEED)
        usable = np.arange(_usable(config, vocabulary))
        ids = np.setdiff1d(usable, list(special_ids(config)))
        ids = ids if len(ids) > 1 else usable  # some vocabulary of a test or a game has little else
        sizes = _fitting(config, longest)
        if apart:
            sizes = (*sizes[:3], sizes[4], min(LONG // 2, sizes[4]))
        parts = [draw.choice(ids, size) for size in sizes]
        prompt, first, second, other, long = parts
        if first[0] == second[0]:
            second[0] = ids[0] if first[0] != ids[0] else ids[-1]
        return ProbeSequences(prompt, (first, second), other, long)

    @property
    def beginning(self) -> IntArray:
        """[1, T]: the second prompt with the beginning of its long completion."""
        return np.concatenate([self.other_prompt, self.long[:BEGINNING]])[None]

    @property
    def rows(self) -> tuple[IntArray, IntArray]:
        """The whole sequences: [2, T] of the first prompt, and [1, U] of the second."""
        both = np.stack([np.concatenate([self.prompt, completion]) for completion in self.completions])
        return both, np.concatenate([self.other_prompt, self.long])[None]

    @property
    def trees(self) -> list[PromptTree]:
        """The four completions as trees, each prompt once."""
        beginning = self.long[:BEGINNING]
        return [_tree(self.prompt, self.completions), _tree(self.other_prompt, (self.long, beginning))]

    def micro_batch(self, *, alone: bool = False, multiple: int = 1) -> MicroBatch:
        """Return all four completions in one micro-batch, filled up to a multiple of `multiple` tokens.

        With `alone`, only those of the first prompt.
        """
        return collate(self.trees[:1] if alone else self.trees, pairs=(), multiple=multiple)


def special_ids(config: Any) -> set[int]:
    """Return the token ids that a config, at any depth, names: of special tokens, images, sounds and padding."""
    return set(_named_ids(config.to_dict()))


def _named_ids(content: dict[Any, Any]) -> Iterator[int]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _named_ids(value)
        elif str(name).endswith(("_id", "_ids", "token_index")):  # also Molmo's image_patch_id, or im_start_id
            values = value if isinstance(value, list) else [value]
            yield from (int(found) for found in values if isinstance(found, int))


def _usable(config: Any, vocabulary: int) -> int:
    """Return the number of token ids that both the embedding and the config know."""
    return min([vocabulary, *_named_sizes(config, ("vocab_size", "unpadded_vocab_size", "decoder_vocab_size"))])


def _named_sizes(config: Any, names: tuple[str, ...]) -> list[int]:
    """Return the sizes above 0 that a config has under these names, also those of its encoder and decoder."""
    sides = [getattr(config, side, None) for side in ("encoder", "decoder")]
    parts = [part.get_text_config() for part in (config, *sides) if hasattr(part, "get_text_config")]
    sizes = [getattr(part, name, None) for part in parts for name in names]
    return [size for size in sizes if isinstance(size, int) and size > 0]


def _fitting(config: Any, longest: int | None) -> tuple[int, int, int, int, int]:
    """Return the number of tokens of each part, so that the longest sequence has room in the model's positions."""
    # Beyond a window's end, if that is cheap.
    long = max([LONG, *(2 * window for window in short_and_long_windows(config) if window <= PROVABLE_WINDOW)])
    # Rotary factors that grow with the length have no last position.
    limits = [] if rope_limit(config) else _named_sizes(config, POSITIONS)
    for limit in [*limits, *([longest] if longest else [])]:
        long = max(min(long, limit - PROMPT), BEGINNING + 1)
    return PROMPT, min(COMPLETION, long), min(COMPLETION, long), PROMPT, long


def _tree(prompt: IntArray, completions: tuple[IntArray, ...]) -> PromptTree:
    return PromptTree(prompt, completions, (), (), ())
