"""Blocks of rows whose completions have several turns: their masks, contents and digests by `loss_on`."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from raydpo.blocks import schema
from raydpo.blocks.block import TokenizedBlock
from raydpo.blocks.schema import Block
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.shards import Shard
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe, tokenize_block
from raydpo.reference.readers import DatasetReference
from raydpo.runtime import storage
from raydpo.stages.feeds import data_digest
from tests.data.conversations import CHOSEN, CHOSEN_PIECES, REJECTED, REJECTED_PIECES, USER, ids_and_mask, turns
from tests.data.tokenizers import TEMPLATE, build_tokenizer

YES, NO = turns(("assistant", "hello")), turns(("assistant", "no"))


def outcome_of(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **options: Any
) -> BlockOutcome:
    folder.mkdir(exist_ok=True)
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (raw,) = raw_blocks(Shard("a.jsonl", str(path)), 0, Slicing("preference", 10))
    truncation = Truncation(options.pop("max_length", None))
    recipe = BlockRecipe(truncation, str(folder / "cache"), str(folder / "quarantine"), **options)
    return tokenize_block(raw, tokenizer, recipe)


def block_of(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **options: Any) -> Block:
    block = outcome_of(folder, tokenizer, rows, **options).block
    assert block is not None
    return block


def row(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": [USER], "chosen": chosen, "rejected": rejected}


def test_rows_of_single_turns_and_text_give_the_same_block(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [row(YES, NO), {"prompt": "a", "chosen": "b", "rejected": "c"}]
    blocks = [block_of(tmp_path, chat_tokenizer, rows, assistant_only=only) for only in (False, True)]
    assert blocks[0] == blocks[1]
    assert storage.read_table(blocks[1].url).schema.equals(schema.TOKENIZED_SCHEMA)


def test_masks_change_the_data_of_training_and_not_the_name_of_scores(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [row(CHOSEN, REJECTED), row(YES, NO)]
    everything, turns_only = (block_of(tmp_path, chat_tokenizer, rows, assistant_only=only) for only in (False, True))
    assert everything.content == turns_only.content
    assert everything.url != turns_only.url
    assert data_digest([everything]) != data_digest([turns_only])
    assert data_digest([everything.part([0])]) != data_digest([turns_only.part([0])])
    assert everything.part([0]).content == turns_only.part([0]).content
    pair = TokenizedBlock(turns_only).pair(0)
    for ids, mask, pieces in (
        (pair.chosen_ids, pair.chosen_loss_mask, CHOSEN_PIECES),
        (pair.rejected_ids, pair.rejected_loss_mask, REJECTED_PIECES),
    ):
        assert mask is not None
        assert (ids.tolist(), mask.tolist()) == ids_and_mask(chat_tokenizer, pieces)
    other = TokenizedBlock(turns_only.part([1])).pair(0)
    assert other.chosen_loss_mask is not None
    assert other.chosen_loss_mask.all()
    assert other.chosen_targets == len(other.chosen_ids)
    assert TokenizedBlock(everything).pair(0).chosen_loss_mask is None


def test_other_turns_with_the_same_tokens_are_other_data(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    """An answer may hold the words that a template writes between turns: it is one turn, all of which is learned."""
    rendered = "".join(text for text, _ in REJECTED_PIECES).removesuffix("<|end|>")
    mixed = row(CHOSEN, turns(("assistant", rendered)))
    blocks = [
        block_of(tmp_path / name, chat_tokenizer, [content], assistant_only=True)
        for name, content in (("one", row(CHOSEN, REJECTED)), ("other", mixed))
    ]
    assert blocks[0].content == blocks[1].content
    assert data_digest(blocks[:1]) != data_digest(blocks[1:])


def test_rows_whose_turns_cannot_be_found_go_to_quarantine(tmp_path: Path) -> None:
    last = "{% if loop.last and message.role == 'assistant' %}<eos>{% else %}<|end|>{% endif %}"
    tokenizer = build_tokenizer(TEMPLATE.replace("<|end|>", last))
    rows = [row(YES, REJECTED), row(YES, NO)]
    outcome = outcome_of(tmp_path, tokenizer, rows, assistant_only=True)
    assert (outcome.rows, dict(outcome.bad_reasons)) == (2, {"turns not found": 1})
    assert not outcome_of(tmp_path, tokenizer, rows).bad_reasons


def test_log_probs_of_the_rows_are_kept_with_their_masks(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    _, mask = ids_and_mask(chat_tokenizer, CHOSEN_PIECES)
    values = [-1.0 - number for number in range(sum(mask))]
    content = {**row(CHOSEN, YES), "ref_chosen_logps": values, "ref_rejected_logps": -3.0}
    block = block_of(tmp_path, chat_tokenizer, [content], assistant_only=True, dataset_logps=True)
    pair = DatasetReference().read(block).pair(0)
    assert pair.chosen_loss_mask is not None
    assert pair.chosen_loss_mask.tolist() == mask
    assert pair.ref_chosen_logps[pair.chosen_loss_mask].tolist() == values
    assert pair.ref_rejected_logps.sum() == -3.0
    refused = outcome_of(tmp_path, chat_tokenizer, [content], dataset_logps=True)
    assert dict(refused.bad_reasons) == {"wrong reference log-probs": 1}, "without masks there are more tokens"
