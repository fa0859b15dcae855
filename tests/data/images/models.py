"""Rows with images, tokenized in this process by the processor in a model's folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raydpo.blocks.block import TokenizedBlock
from raydpo.blocks.schema import TokenizedPair
from raydpo.data.dialects.columns import ColumnMapping
from raydpo.data.images.loading import load_image_processing
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.shards import find_shards
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockOutcome, BlockRecipe, tokenize_block
from tests.data.images.processors import TinyProcessor, build_processor, picture


@dataclass
class Case:
    """A folder with two pictures, a model's processor and a cache."""

    folder: Path
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of the recipe."""

    def __post_init__(self) -> None:
        """Write the pictures and the processor."""
        (self.folder / "model").mkdir(parents=True)
        self.tiny: TinyProcessor = build_processor(self.kind)
        self.tiny.save(self.folder / "model")
        picture(0).save(self.folder / "a.png")
        picture(1, 50, 30).save(self.folder / "b.png")

    def recipe(self, **options: Any) -> BlockRecipe:
        """Return a recipe with the model's processor, loaded anew."""
        images = load_image_processing(str(self.folder / "model"), self.tokenizer, trust_remote_code=False)
        given = {"truncation": Truncation(), "images": images, **self.options, **options}
        return BlockRecipe(cache_dir=str(self.folder / "cache"), quarantine_dir=str(self.folder / "bad"), **given)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model's folder, as a run loads it."""
        return AutoTokenizer.from_pretrained(self.folder / "model")

    def write(self, rows: list[dict[str, Any]]) -> Path:
        """Write rows as JSON lines beside the pictures."""
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def outcome(self, path: Path, **options: Any) -> BlockOutcome:
        """Tokenize the one block of a file."""
        (shard,) = find_shards([str(path)], "train")
        mapping = options.get("mapping", ColumnMapping())
        (raw,) = raw_blocks(shard, 0, Slicing(mapping=mapping))
        return tokenize_block(raw, self.tokenizer, self.recipe(**options))

    def pairs(self, rows: list[dict[str, Any]], **options: Any) -> list[TokenizedPair]:
        """Tokenize rows, all of which must be good."""
        outcome = self.outcome(self.write(rows), **options)
        assert outcome.block is not None
        assert not outcome.bad_reasons, self.reasons()
        block = TokenizedBlock(outcome.block)
        return [block.pair(row) for row in range(len(block))]

    def reasons(self) -> list[str]:
        """Return the reasons of the bad rows of the last file."""
        files = sorted((self.folder / "bad").glob("*"))
        return [json.loads(line)["reason"] for file in files for line in file.read_text().splitlines()]


def image(*contents: Any, answers: tuple[str, str] = ("A cat.", "A dog!"), **columns: Any) -> dict[str, Any]:
    """Return a row whose prompt is one user message; a text is a part of text, None is a place for an image."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in contents]
    return row(parts, answers, **columns)


def row(content: Any, answers: tuple[str, str] = ("A cat.", "A dog!"), **columns: Any) -> dict[str, Any]:
    """Return a row whose prompt is one user message with this content."""
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
    return {"prompt": [{"role": "user", "content": content}], "chosen": chosen, "rejected": rejected, **columns}
