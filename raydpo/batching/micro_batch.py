"""The packed row that one forward takes."""

from dataclasses import dataclass

from raydpo.blocks.schema import FloatArray, IntArray


@dataclass(frozen=True)
class Layout:
    """Where prompts and completions stand in a packed row of T tokens.

    Each token sees its own segment up to itself, and a completion sees its prompt beside. A prompt stands right before
    the first of its completions; positions go on from the prompt in each of them.
    """

    prompts: tuple[tuple[int, int], ...]
    """Of each prompt: index of its first token in the row, and after its last."""
    completions: tuple[tuple[int, int, int], ...]
    """Of each completion: first, after its last, and the index of its prompt."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward takes: B pairs in one packed row of T tokens, in which each prompt stands once, and each
    completion of it once, whichever pairs they are of.

    N tokens are predicted, M are counted: the tokens of the 2B completions (B chosen, then B rejected); and P more, of
    the pairs' prompts, where the objective counts their likelihood too (else P is 0). A rank that has no pair left in a
    global batch gets a batch with `pairs == 0` and a row of one token, so that all ranks make the same number of
    forwards (collectives in ZeRO-3 hang otherwise); its N is 0.
    """

    input_ids: IntArray
    """[T]"""
    position_ids: IntArray
    """[T]; position of the token in its prompt + completion, from 0."""
    multiplicity: IntArray
    """[T]; in how many of the 2B sequences the token stands; 1 in a dummy, so that means over it are finite."""
    layout: Layout
    predictors: IntArray
    """[N]; the token in the row that predicts each target; the last of a prompt predicts its completions' first."""
    targets: IntArray
    """[N]; the completions' tokens, then, where they are wanted, the prompts' but the first of each."""
    target_index: IntArray
    """[M]; which of the N each token of the 2B completions is."""
    sequence_index: IntArray
    """[M]; completion (0 .. 2B-1) that it belongs to; the tokens of one stand together and in order."""
    prompt_target_index: IntArray
    """[P]; which of the N each token of the pairs' prompts is."""
    prompt_pair_index: IntArray
    """[P]; pair (0 .. B-1) that it belongs to."""
    ref_logps: FloatArray
    """[M]; the reference's log-prob of each completion token; [0] where the reference itself is being scored."""
    pair_ids: tuple[str, ...]
    """The B pairs."""

    @property
    def pairs(self) -> int:
        """B, or 0 for a rank's dummy batch."""
        return len(self.pair_ids)
