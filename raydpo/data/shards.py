"""Shards: the files that dataset names stand for, in order, each with a name of its own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.data import sources
from raydpo.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One file of preference rows."""

    name: str
    """The file's name, with as many of its folders as tell it from the others'. Pair ids begin with it."""
    url: str
    """Absolute path or fsspec URL."""


def find_shards(
    names: Sequence[str], split: str, config: str | None = None, *, required: bool = True
) -> tuple[Shard, ...]:
    """The files behind paths, globs, folders, URLs and hub ids, in the order of the names, sorted within each.

    Of a source that has splits (hub id, saved `datasets` folder, plain folder whose files or sub-folders are called
    after splits) only `split` is taken. Other sources are taken whole; with `required=False`, which asks for a split
    that need not be there, they give nothing. `config` is the configuration of hub ids.

    Raises DataError for a name that stands for nothing, an unknown file type, a missing split, a file named twice.
    """
    if config is not None and not any(sources.is_hub_id(name) for name in names):
        raise DataError(
            f"dataset_config={config!r} is the configuration of a hub data set, but no name in {list(names)} is a hub "
            "id; leave it out"
        )
    urls: list[str] = []
    for name in names:
        found = sources.files_of(name, split, config, required)
        if required and not found:
            raise DataError(
                f"{name} has no files of preference rows; name a file, folder, glob or hub id that has some"
            )
        urls += found
    if twice := [url for url, times in Counter(urls).items() if times > 1]:
        raise DataError(f"{twice[0]} is named twice, so that its pairs would count twice; name it once")
    return tuple(Shard(name, url) for name, url in zip(_unique_names(urls), urls, strict=True))


def _unique_names(urls: Sequence[str]) -> list[str]:
    """The last part of each URL, and as many parts before it as it takes to differ."""
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
