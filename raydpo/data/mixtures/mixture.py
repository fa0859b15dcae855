"""A run's training data as a mixture: the shards of each data set, and which of their rows are trained on or held out.

An entry of weight w gives exactly int(w x rows) of its rows. Which ones depends on the seed, on w and on the entry's
number of rows, and not on other entries or on paths.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from raydpo.config.mixture import LOADERS, DatasetEntry
from raydpo.data import sources
from raydpo.data.mixtures.selection import Draw, RowSelection, key_of, sample, shares
from raydpo.data.shards import Shard, name_shards
from raydpo.errors import DataError
from raydpo.runtime import storage

RowCounter = Callable[[Sequence[str]], Sequence[int]]
"""Returns the number of rows of each URL; see `row_counts.count_all`."""


@dataclass(frozen=True)
class EntryRows:
    """One data set of the mixture, and how many of its rows are used."""

    entry: DatasetEntry
    shards: tuple[Shard, ...]
    """All of its shards, without a selection of rows."""
    rows: int | None = None
    """Number of rows in its files; None if they need not be counted, as all are trained on."""
    taken: int | None = None
    """Number of rows that are trained on; None if rows is None."""
    held_out: int = 0
    """Number of rows held out by test_split_size."""


@dataclass(frozen=True)
class Mixture:
    """The training data of a run."""

    entries: tuple[EntryRows, ...]
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    """Shards of the rows held out by test_split_size; empty without it."""


def find_entries(entries: Sequence[DatasetEntry], split: str) -> tuple[EntryRows, ...]:
    """Return the data sets with their shards; `split` is that of entries that name none.

    Raises DataError as `find_shards` does, and where two entries have a file in common.
    """
    _check_names(entries)
    files = [_files_of(entry, split) for entry in entries]
    named = iter(name_shards([url for urls in files for url in urls]))
    return tuple(
        EntryRows(entry, tuple(replace(next(named), columns=frozenset(entry.columns)) for _ in urls))
        for entry, urls in zip(entries, files, strict=True)
    )


def _check_names(entries: Sequence[DatasetEntry]) -> None:
    """Raise DataError for a configuration that belongs to no hub id; a path has none, or one that is called default."""
    is_hub_id = {entry.path: sources.is_hub_id(entry.path) for entry in entries}
    known = {None, "default", *(entry.name for entry in entries if is_hub_id[entry.path])}
    for entry in entries:
        if entry.name not in known:
            raise DataError(
                f"dataset_config={entry.name!r} (name, in datasets) is the configuration of a hub dataset, but "
                f"{entry.path} is a path; leave it out, or set data_dir for a folder below it"
            )


def _files_of(entry: DatasetEntry, default_split: str) -> list[str]:
    split = entry.split or default_split
    if sources.is_hub_id(entry.path):
        files = sources.find_files(
            entry.path, split, entry.name, required=True, below=(entry.data_dir, entry.data_files)
        )
    else:
        files = [url for name in _local_names(entry) for url in sources.find_files(name, split, None, required=True)]
    if not files:
        raise DataError(
            f"{entry.path} has no files of preference rows; name a file, folder, glob or hub id that has some"
        )
    return files


def _local_names(entry: DatasetEntry) -> list[str]:
    base = "" if entry.path in LOADERS and entry.data_files else entry.path
    parts = [part for part in (base, entry.data_dir) if part]
    names = [[*parts, file] for file in entry.data_files] or [parts]
    return [_joined(name) for name in names]


def _joined(parts: Sequence[str]) -> str:
    joined = parts[0]
    for part in parts[1:]:  # an absolute path or a URL stands for itself
        joined = part if part.startswith("/") or storage.is_remote(part) else storage.join(joined, part)
    return joined


def draw_rows(entries: Sequence[EntryRows], seed: int, test_size: float | None, count: RowCounter) -> Mixture:
    """Return the mixture with the rows of each data set chosen; rows are counted only where that is needed.

    `test_size` of the chosen rows, a share (rounded up) or a number, are held out, in proportion to what each data set
    gives. Raises DataError where no rows are left to train on.
    """
    wanted = [entry for entry in entries if test_size is not None or entry.entry.weight < 1]
    if not wanted:
        return Mixture(tuple(entries), tuple(shard for entry in entries for shard in entry.shards), ())
    urls = [shard.url for entry in wanted for shard in entry.shards]
    rows_of: Mapping[str, int] = dict(zip(urls, count(urls), strict=True))
    counted = [_counted(entry, rows_of) if entry in wanted else entry for entry in entries]
    sizes = [entry.taken or 0 for entry in counted]
    held_out = _held_out_sizes(sizes, test_size)
    found: list[EntryRows] = []
    train: list[Shard] = []
    test: list[Shard] = []
    for entry, size in zip(counted, held_out, strict=True):
        if entry.rows is None or entry.taken is None:
            train += entry.shards
            found.append(entry)
            continue
        chosen = sample(key_of(seed, "weight"), entry.rows, entry.taken)
        if test_size is None:
            train += _selected(entry.shards, rows_of, (chosen,))
        else:
            out = sample(key_of(seed, "test_split_size"), entry.rows, size, within=chosen)
            train += _selected(entry.shards, rows_of, (chosen, Draw(out.key, out.limit, others=True)))
            test += _selected(entry.shards, rows_of, (chosen, out), keeps_faults=False) if size else []
        found.append(replace(entry, taken=entry.taken - size, held_out=size))
    return Mixture(tuple(found), tuple(train), tuple(test))


def _counted(entry: EntryRows, rows_of: Mapping[str, int]) -> EntryRows:
    rows = sum(rows_of[shard.url] for shard in entry.shards)
    taken = int(entry.entry.weight * rows)
    if not taken:
        raise DataError(
            f"weight={entry.entry.weight:g} of the {rows} rows of {entry.entry.path} is no row; raise it, or leave the "
            "data set out"
        )
    return replace(entry, rows=rows, taken=taken)


def _held_out_sizes(sizes: Sequence[int], test_size: float | None) -> list[int]:
    if test_size is None:
        return [0] * len(sizes)
    total = sum(sizes)
    out = math.ceil(test_size * total) if test_size < 1 else int(test_size)
    if out >= total:
        raise DataError(
            f"test_split_size={test_size:g} holds out {out} rows, and the training data has {total}, so that none are "
            "left; lower it"
        )
    return shares(out, sizes)


def _selected(
    shards: Sequence[Shard], rows_of: Mapping[str, int], draws: tuple[Draw, ...], *, keeps_faults: bool = True
) -> list[Shard]:
    counts = [rows_of[shard.url] for shard in shards]
    firsts = accumulate(counts, initial=0)
    return [
        replace(shard, selection=RowSelection(first, count, draws, keeps_faults))
        for shard, count, first in zip(shards, counts, firsts, strict=False)
    ]
