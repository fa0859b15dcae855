"""Find the shards of a dataset: the files that dataset names stand for, in order, with unique names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.data import sources
from raydpo.data.mixtures.selection import RowSelection
from raydpo.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One file of preference rows."""

    name: str
    """The file name, preceded by as many of its folders as make it unique. Pair ids begin with it."""
    url: str
    """Absolute path or fsspec URL."""
    columns: frozenset[str] = frozenset()
    """Columns to which its rows are reduced; empty: all."""
    selection: RowSelection | None = None
    """Rows that are used; None: all."""


def find_shards(
    names: Sequence[str], split: str, config: str | None = None, *, required: bool = True
) -> tuple[Shard, ...]:
    """Return the shards behind paths, globs, folders, URLs and hub ids, in the order of `names`, sorted within each.

    If a source has splits (a hub id, a saved `datasets` folder, or a folder whose files or sub-folders are named after
    splits), only the files of `split` are used. Sources without splits are used completely if `required` is True, and
    contribute nothing if it is False, which stands for an optional split. `config` is the configuration of hub ids.

    Raises DataError if a name stands for no files, a file type is unknown, a required split is missing, or a file is
    named twice.
    """
    if config is not None and not any(sources.is_hub_id(name) for name in names):
        raise DataError(
            f"dataset_config={config!r} is the configuration of a hub dataset, but no name in {list(names)} is a hub "
            "id; leave dataset_config out"
        )
    urls: list[str] = []
    for name in names:
        found = sources.find_files(name, split, config, required)
        if required and not found:
            raise DataError(
                f"{name} has no files of preference rows; name a file, folder, glob or hub id that has some"
            )
        urls += found
    return name_shards(urls)


def name_shards(urls: Sequence[str]) -> tuple[Shard, ...]:
    """Return the shards of these files, with unique names. Raises DataError if a file is named twice."""
    if duplicates := [url for url, times in Counter(urls).items() if times > 1]:
        raise DataError(f"{duplicates[0]} is named twice, so its pairs would be used twice; name it once")
    return tuple(Shard(name, url) for name, url in zip(_unique_names(urls), urls, strict=True))


def _unique_names(urls: Sequence[str]) -> list[str]:
    """Return the last part of each URL, with as many parts before it as make it unique."""
    parts = [url.split("/") for url in urls]
    kept = [1] * len(urls)
    while True:
        names = ["/".join(part[-count:]) for part, count in zip(parts, kept, strict=True)]
        times = Counter(names)
        clashing = [i for i, name in enumerate(names) if times[name] > 1]
        if not clashing:
            return names
        for i in clashing:
            kept[i] += 1
