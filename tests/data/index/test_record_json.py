"""Records to JSON and back."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import pytest

from raydpo.data.index.record_json import from_json, to_json


@dataclasses.dataclass(frozen=True)
class Inner:
    name: str
    rows: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner | None
    counts: Mapping[str, int]
    numbers: Mapping[int, float]
    marks: frozenset[str]
    pair: tuple[str, int]
    parts: Sequence[Inner]


@pytest.mark.parametrize(
    "record",
    [
        Outer(None, {}, {}, frozenset(), ("", 0), []),
        Outer(Inner("a", (1, 2)), {"b": 1, "a": 2}, {3: 0.1}, frozenset("xyz"), ("p", -1), [Inner("é\ud800", None)]),
    ],
)
def test_records_survive_json(record: Outer) -> None:
    text = json.dumps(to_json(record))
    assert from_json(Outer, json.loads(text)) == record
    assert json.dumps(to_json(record)) == text


def test_json_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="'x' is not of type"):
        from_json(tuple[int, ...], ["x"])
    with pytest.raises(KeyError, match="rows"):
        from_json(Inner, {"name": "a"})
    with pytest.raises(TypeError, match="object has no form in JSON"):
        to_json([object()])
