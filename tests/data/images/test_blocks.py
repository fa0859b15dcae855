"""Blocks of pairs with images: content, keys of completions, and the second run, which processes nothing."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raydpo.blocks.block import TokenizedBlock
from raydpo.blocks.schema import Block
from raydpo.cli import reference_store
from raydpo.data.images import store
from raydpo.data.images.processing import ImageProcessing
from raydpo.data.images.rows import total_images
from raydpo.data.index.settings_digest import settings_digest
from raydpo.data.index.token_index import TokenIndex
from raydpo.data.ray_stream import ShardEnd, Slicing, raw_blocks
from raydpo.data.shards import Shard, find_shards
from raydpo.data.tokenize_block import BlockOutcome, tokenize_block
from raydpo.reference.dedup import NOTHING_REUSED, completion_keys, unique_completions
from tests.data.images.models import Case, row
from tests.data.images.processors import picture


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "case", "gemma3")


def block_of(case: Case, rows: list[dict[str, Any]]) -> Block:
    block = case.outcome(case.write(rows)).block
    assert block is not None
    return block


def test_another_picture_is_another_content_with_the_same_tokens(case: Case) -> None:
    one, other = (block_of(case, [row("What?", images=[name])]) for name in ("a.png", "b.png"))
    first, second = (TokenizedBlock(block).pair(0) for block in (one, other))
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist()
    assert first.images != second.images
    assert len({one.content, other.content}) == len({one.url, other.url}) == 2
    assert not set(completion_keys(one).ravel()) & set(completion_keys(other).ravel())
    assert block_of(case, [row("What?", images=["a.png"])]) == one


def test_a_completion_of_the_same_prompt_and_picture_is_one(case: Case) -> None:
    rows = [row("What?", (answer, "No."), images=[name]) for answer in ("A", "B") for name in ("a.png", "b.png")]
    block = TokenizedBlock(block_of(case, rows))
    pairs = [block.pair(i) for i in range(len(block))]
    prompts = unique_completions(pairs, NOTHING_REUSED)
    assert [(prompt.images, len(prompt.completions)) for prompt in prompts] == [
        (pairs[0].images, 3),
        (pairs[1].images, 3),
    ]
    assert completion_keys(block_of(case, rows))[0, 1] == completion_keys(block_of(case, rows))[2, 1]


def test_a_block_without_images_is_as_it_was_without_a_processor(case: Case) -> None:
    rows = [row("What?", images=[]), {"prompt": "One", "chosen": " two", "rejected": " three"}]
    with_processor = case.outcome(case.write(rows)).block
    without = case.outcome(case.write(rows), images=None).block
    assert with_processor is not None
    assert with_processor == without
    assert with_processor.images == ""
    assert "images" not in TokenizedBlock(with_processor).table.column_names
    assert not store.digests(str(case.folder / "cache"))


def test_rows_without_images_stand_among_rows_with_images(case: Case) -> None:
    block = TokenizedBlock(block_of(case, [row("No picture"), row("What?", images=["a.png"]), row("None", images=[])]))
    assert [len(block.pair(i).images) for i in range(3)] == [0, 1, 0]


def test_a_picture_is_processed_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    process = ImageProcessing._output

    def noted(self: ImageProcessing, picture: Any) -> Any:
        calls.append(picture.size)
        return process(self, picture)

    rows = [row(f"What {i}?", images=["a.png", "b.png", "a.png"]) for i in range(3)]
    case.outcome(case.write([row("What?", images=["b.png"])]))  # compares the processor with itself first
    monkeypatch.setattr(ImageProcessing, "_output", noted)
    outcome = case.outcome(case.write(rows))
    assert calls == [(20, 16)]
    assert (outcome.images.read, outcome.images.distinct, outcome.images.processed) == (9, 2, 1)
    again = case.outcome(case.write([row("Other words?", images=["b.png", "a.png"])]))
    assert calls == [(20, 16)]
    assert (again.images.read, again.images.processed) == (2, 0)


def test_a_damaged_file_of_the_store_is_written_again(case: Case) -> None:
    (pair,) = case.pairs([row("What?", images=["a.png"])])
    path = Path(store.image_url(str(case.folder / "cache"), pair.images[0]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    (again,) = case.pairs([row("What?", images=["a.png"])])
    assert again.images == pair.images
    assert path.read_bytes() == whole


def index_of(case: Case, shards: Sequence[Shard]) -> TokenIndex:
    recipe = case.recipe()
    settings = settings_digest(case.tokenizer, recipe, Slicing())
    return TokenIndex(shards, settings, recipe.cache_dir, recipe.quarantine_dir)


def run(case: Case, path: Path) -> tuple[BlockOutcome, bool]:
    """Return the outcome of the one block of a file, and whether it was reused."""

    def tokenize(shards: Sequence[Shard]) -> Generator[BlockOutcome | ShardEnd, None, None]:
        for position, shard in enumerate(shards):
            (raw,) = raw_blocks(shard, position, Slicing())
            yield tokenize_block(raw, case.tokenizer, case.recipe())
            yield ShardEnd(position, 1)

    (found,) = index_of(case, find_shards([str(path)], "train")).outcomes(tokenize)
    return found


def test_the_second_run_processes_nothing_unless_an_image_is_gone_or_the_processor_is_another(case: Case) -> None:
    path = case.write([row("What?", images=["a.png"]), row("What?", images=["b.png", "a.png"])])
    first, reused = run(case, path)
    assert not reused
    second, reused = run(case, path)
    assert reused
    assert second.block == first.block
    assert total_images([second.images]).distinct == 2

    digest = sorted(store.digests(str(case.folder / "cache")))[0]
    Path(store.image_url(str(case.folder / "cache"), digest)).unlink()
    third, reused = run(case, path)
    assert not reused
    assert third.images.processed == 1
    assert third.block == first.block

    config = case.folder / "model" / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"do_rescale": true', '"do_rescale": false'))
    fourth, reused = run(case, path)
    assert not reused
    assert fourth.images.processed == 2
    assert fourth.block is not None
    assert first.block is not None
    assert fourth.block.content != first.block.content


def test_a_picture_that_was_changed_or_has_come_is_read_again(case: Case) -> None:
    path = case.write([row("What?", images=["a.png"]), row("What?", images=["late.png"])])
    first, _ = run(case, path)
    assert first.bad_reasons == {"image not found": 1}
    assert run(case, path)[1]
    picture(7).save(case.folder / "late.png")
    second, reused = run(case, path)
    assert not reused
    assert not second.bad_reasons
    picture(8).save(case.folder / "a.png")
    third, reused = run(case, path)
    assert not reused
    assert third.block is not None
    assert second.block is not None
    assert third.block.content != second.block.content
    assert run(case, path)[1]


def test_images_are_listed_and_pruned_with_the_tokenized_blocks(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    run(case, case.write([row("What?", images=["a.png", "b.png"])]))
    cache = str(case.folder / "cache")
    assert reference_store.main(["list", "--cache_dir", cache]) == 0
    assert "1 shards in the index, 2 images" in capsys.readouterr().out
    assert reference_store.main(["prune", "--cache_dir", cache, "--max_gigabytes", "0"]) == 0
    assert not store.digests(cache)
