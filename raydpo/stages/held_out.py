"""The held-out pairs of a run: which files they are in, as one set or as several with names."""

import re
from collections.abc import Sequence

from raydpo.config import JobConfig
from raydpo.data import sources
from raydpo.data.shards import Shard, find_shards, name_shards
from raydpo.errors import ConfigError, DataError

_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.*)", re.DOTALL)
_TAKEN = ("nll", "aux")
"""Names whose eval_NAME_loss is a metric of the set without a name."""


def find_held_out(job: JobConfig, train: Sequence[Shard]) -> dict[str, tuple[Shard, ...]]:
    """Return the shards of each set of held-out pairs, by name; none with eval_strategy=no or test_split_size.

    Raises DataError where the run evaluates and there are none, or where one of them is a shard of `train` too.
    """
    data = job.data
    if job.optim.eval_strategy == "no" or data.test_split_size is not None:
        return {}
    if data.eval_dataset_name:
        found = {
            name: find_shards(paths, data.dataset_test_split, _config(job, paths))
            for name, paths in named_sets(data.eval_dataset_name).items()
        }
    else:
        # Files named one by one belong to the option that names them; only other sources are searched for a split.
        names = list(dict.fromkeys((entry.path, entry.name) for entry in data.entries if not entry.data_files))
        shards = [
            shard
            for path, config in names
            for shard in find_shards(
                [path], data.dataset_test_split, config if sources.is_hub_id(path) else None, required=False
            )
        ]
        if not shards:
            raise DataError(
                f"eval_strategy={job.optim.eval_strategy} needs held-out pairs, and "
                f"{', '.join(path for path, _ in names)} has no split {data.dataset_test_split}; name files with "
                "eval_dataset_name, hold out rows with test_split_size, or set eval_strategy=no"
            )
        found = {"": name_shards([shard.url for shard in shards])}
    evaluated = {shard.url for shards in found.values() for shard in shards}
    if both := {shard.url for shard in train} & evaluated:
        raise DataError(f"{min(both)} is named for training and for evaluation; name other files in eval_dataset_name")
    return found


def _config(job: JobConfig, paths: Sequence[str]) -> str | None:
    has_hub_id = any(map(sources.is_hub_id, paths))
    return job.data.dataset_config if has_hub_id else None


def named_sets(items: Sequence[str]) -> dict[str, list[str]]:
    """Return the paths of each set of held-out pairs by name; the set without a name comes first.

    An item NAME=PATH belongs to the set NAME, unless it is the path of something that exists, such as a folder
    year=2024. Raises ConfigError for a name whose metrics would be mistaken for others.
    """
    sets: dict[str, list[str]] = {"": []}
    for item in items:
        named = _NAMED.fullmatch(item)
        if named is None or sources.exists(item):
            sets[""].append(item)
            continue
        name, path = named.groups()
        if name in _TAKEN:
            raise ConfigError(
                f"eval_dataset_name={item}: eval_{name}_loss is a metric already; choose another name than {name}"
            )
        if not path:
            raise ConfigError(f"eval_dataset_name={item} names no data after {name}=; add a path or hub id")
        sets.setdefault(name, []).append(path)
    return {name: paths for name, paths in sets.items() if paths}
