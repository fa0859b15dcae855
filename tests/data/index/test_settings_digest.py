"""The digest of what decides tokenized blocks: every setting, and of a tokenizer what decides its ids."""

import dataclasses
import shutil
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raydpo.data.images.loading import no_images
from raydpo.data.images.processing import ImageProcessing
from raydpo.data.index.settings_digest import NOT_DECIDING, settings_digest, tokenizer_digest
from raydpo.data.ray_stream import Slicing
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe
from tests.data.tokenizers import TEMPLATE, build_tokenizer


def changed(hint: Any, value: Any) -> Any:
    """Return another value of the same type."""
    if get_origin(hint) is types.UnionType:
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is ImageProcessing:
        return no_images("model")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        field = dataclasses.fields(hint)[0]
        part = getattr(value, field.name) if value is not None else None
        inner = get_type_hints(hint)[field.name]
        return dataclasses.replace(value, **{field.name: changed(inner, part)}) if value else hint()
    origin = get_origin(hint) or hint
    if origin is bool:
        return not value
    if origin in (int, float):
        return (value or 0) + 1
    if origin is str:
        return (value or "") + "x"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {**(value or {}), changed(get_args(hint)[0], None): changed(get_args(hint)[1], None)}
    kind = tuple if origin is tuple else frozenset if issubclass(origin, frozenset) else list
    return kind([*(value or ()), changed(get_args(hint)[0], None)])


FIELDS = [
    (record, field.name)
    for record in (BlockRecipe(Truncation(), "cache", "quarantine"), Slicing("auto", 4), Truncation())
    for field in dataclasses.fields(record)
]


@pytest.mark.parametrize(("record", "name"), FIELDS, ids=[f"{type(record).__name__}.{name}" for record, name in FIELDS])
def test_every_field_decides_unless_it_is_listed(
    record: Any, name: str, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Check that a field which is added later changes the key, or is known not to decide."""
    assert {"cache_dir", "quarantine_dir"} == NOT_DECIDING, "where files are does not change them; all else may"
    other = dataclasses.replace(record, **{name: changed(get_type_hints(type(record))[name], getattr(record, name))})
    assert other != record
    differs = settings_digest(text_tokenizer, other) != settings_digest(text_tokenizer, record)
    assert differs == (name not in NOT_DECIDING)


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "chat_template", TEMPLATE + " "),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<|end|>"),
        lambda tokenizer: setattr(tokenizer, "split_special_tokens", True),
        lambda tokenizer: tokenizer.add_tokens(["hello"]),
        lambda tokenizer: setattr(tokenizer, "add_eos_token", True),
    ],
    ids=["chat_template", "eos_token", "split_special_tokens", "added token", "add_eos_token"],
)
def test_what_decides_the_ids_decides_the_digest_of_a_tokenizer(
    change: Callable[[PreTrainedTokenizerFast], object],
) -> None:
    tokenizer = build_tokenizer(TEMPLATE)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(build_tokenizer(TEMPLATE))
    change(tokenizer)
    assert tokenizer_digest(tokenizer) != tokenizer_digest(build_tokenizer(TEMPLATE))


def test_the_folder_of_a_tokenizer_and_its_use_do_not_matter(tmp_path: Path) -> None:
    build_tokenizer(TEMPLATE).save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("one", "two"))
    two("some text", padding=False, truncation=False)
    assert one.name_or_path != two.name_or_path
    assert tokenizer_digest(one) == tokenizer_digest(two)
