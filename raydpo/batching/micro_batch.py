"""The packed row that is the input of one forward: its arrays, and the spans of prompts and completions in it."""

from dataclasses import dataclass, field

import numpy as np

from raydpo.blocks.schema import FloatArray, IntArray


def _no_values() -> FloatArray:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True)
class Layout:
    """The spans of the prompts and completions in a packed row of T tokens.

    Each span is a segment. A token attends to the tokens of its own segment up to and including itself; a completion's
    token also attends to its whole prompt. A prompt stands directly before the first of its completions, and the
    position ids of each completion continue from the end of its prompt.
    """

    prompts: tuple[tuple[int, int], ...]
    """(start, stop) of each prompt in the row, in tokens."""
    completions: tuple[tuple[int, int, int], ...]
    """(start, stop, prompt) of each completion: its span in the row, in tokens, and the index of its prompt in
    `prompts`."""


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward: B pairs in one packed row of T tokens.

    Pairs share tokens: each prompt of a tree is in the row once, and so is each distinct completion of it, however many
    pairs use them. The forward therefore computes N log-probs, one per distinct target token, and two sets of indices
    into these N log-probs distribute them to the pairs:

    - `target_index` and `sequence_index`, [M]: the tokens of the pairs' 2B completions, where M is the sum of their
      lengths. Completions 0 .. B-1 are the chosen ones and B .. 2B-1 the rejected ones, in the order of `pair_ids`.
      Tokens that a loss mask hides are in the row, but not among the M.
    - `prompt_target_index` and `prompt_pair_index`, [P]: the tokens of the B pairs' prompts, if the objective includes
      the likelihood of prompts; otherwise P is 0.

    A rank that has no pair left in a global batch gets a dummy batch: `pairs == 0`, N = 0 and at least one token in the
    row. It makes all ranks run the same number of forwards; otherwise collectives in ZeRO-3 hang.
    """

    input_ids: IntArray
    """[T]: token ids of the row."""
    position_ids: IntArray
    """[T]: position of each token in its prompt + completion, from 0."""
    multiplicity: IntArray
    """[T]: number of the 2B sequences (prompt + completion) that contain the token, and 0 for filler tokens at the end
    of the row. It is 1 in a dummy batch, so that means weighted by it are finite."""
    layout: Layout
    predictors: IntArray
    """[N]: index in the row of the token whose output predicts each target. It is the token before the target in the
    sequence: the last token of a prompt predicts the first token of each of its completions."""
    target_positions: IntArray
    """[N]: index in the row of each target."""
    targets: IntArray
    """[N]: token ids to predict: those of the distinct completions, without tokens that are masked for all pairs, and
    then, if prompts are included, those of the prompts without the first token of each, which nothing predicts."""
    target_index: IntArray
    """[M]: index (0 .. N-1) in `targets` of each token of the 2B completions."""
    sequence_index: IntArray
    """[M]: completion (0 .. 2B-1) that each entry of `target_index` belongs to. It ascends, and the entries of
    a completion are in the order of its tokens."""
    prompt_target_index: IntArray
    """[P]: index (0 .. N-1) in `targets` of each token of the B pairs' prompts, first tokens excluded."""
    prompt_pair_index: IntArray
    """[P]: pair (0 .. B-1) that each entry of `prompt_target_index` belongs to."""
    ref_logps: FloatArray
    """[M]: reference log-prob of each entry of `target_index`; [0] in a batch for the scoring workers, which compute
    these."""
    pair_ids: tuple[str, ...]
    """Ids of the B pairs."""
    sample_weights: FloatArray = field(default_factory=_no_values)
    """[B]: weight of each pair's loss, from its row; [0] in a batch for the scoring workers."""
    margins: FloatArray = field(default_factory=_no_values)
    """[B]: margin of each pair, from its row; [0] in a batch for the scoring workers."""
    images: tuple[tuple[str, ...], ...] = ()
    """For each prompt of `layout`, filler excluded, the digest of each of its images in the order of its tokens."""

    spare_image: str | None = None
    """Digest of an image to encode for nothing if the micro-batch has none, as other ranks encode theirs in the same
    forward; None where no rank does, or there is one rank only."""

    @property
    def pairs(self) -> int:
        """Number of pairs (B); 0 in a dummy batch."""
        return len(self.pair_ids)
