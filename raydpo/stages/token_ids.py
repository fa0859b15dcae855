"""Token ids of the rows against the rows of the models' embeddings, before anything is scored or trained."""

import logging
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from raydpo.blocks.block import TokenizedBlock
from raydpo.blocks.schema import Block
from raydpo.errors import DataError
from raydpo.stages.model_checks import Vocabulary

_log = logging.getLogger(__name__)


def check_token_ids(
    blocks: Iterable[Block], tokenizer: PreTrainedTokenizerBase, vocabularies: tuple[Vocabulary, ...]
) -> None:
    """Raise DataError, with the row, where a block has a token id that a model has no row for.

    A tokenizer may name more ids than a model has rows for, such as a padding token that was added and is never read;
    as long as no row has them, that is logged only. Blocks are read only for such a tokenizer.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    small = [found for found in vocabularies if largest >= min(found.inputs, found.outputs)]
    if not small:
        return
    for block in blocks:
        tokenized = TokenizedBlock(block)
        for row in range(len(tokenized)):
            pair = tokenized.pair(row)
            read = max(int(ids.max(initial=-1)) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
            predicted = max(int(ids.max(initial=-1)) for ids in (pair.chosen_ids, pair.rejected_ids))
            for found in small:
                _check_row(pair.pair_id, tokenizer, read, found.inputs, f"{found.model!r} has an embedding of")
                _check_row(pair.pair_id, tokenizer, predicted, found.outputs, f"{found.model!r} predicts")
    _log.warning(
        "The tokenizer has ids up to %d, and %s has rows for ids below %d; no row of the data has such an id.",
        largest, small[0].model, min(small[0].inputs, small[0].outputs),
    )  # fmt: skip


def check_lengths(longest: int, vocabularies: tuple[Vocabulary, ...]) -> None:
    """Raise DataError where the longest sequence, in tokens, has more positions than a model has embeddings for."""
    for found in vocabularies:
        if found.positions is not None and longest > found.positions:
            raise DataError(
                f"the longest sequence has {longest} tokens, and {found.model!r} has learned embeddings for "
                f"{found.positions} positions; set max_length={found.positions} or less"
            )


def _check_row(pair_id: str, tokenizer: PreTrainedTokenizerBase, token_id: int, rows: int, model: str) -> None:
    if token_id >= rows:
        raise DataError(
            f"row {pair_id} has the token {tokenizer.convert_ids_to_tokens(token_id)!r} with id {token_id}, and "
            f"{model} {rows} rows, for ids below that; give the model's own tokenizer and chat template, or save the "
            f"model after resize_token_embeddings({max(tokenizer.get_vocab().values()) + 1})"
        )
