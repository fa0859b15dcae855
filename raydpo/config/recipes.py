"""Keys of the alignment handbook's recipes that stand for several options, or need a message of their own.

`dataset_mixture` (recipes from 2025 on) and `dataset_mixer` with `dataset_splits` and `dataset_configs` (earlier ones)
become the options `datasets`, `dataset_seed`, `test_split_size` and `dataset_test_split`.
"""

import json
from collections.abc import Mapping
from typing import Any

from raydpo.config.fields import UNSET, convert, show
from raydpo.errors import ConfigError

MIXTURE, MIXER = "dataset_mixture", "dataset_mixer"
WITH_MIXER = ("dataset_splits", "dataset_configs")
_MIXTURE_KEYS = {"datasets": "datasets", "seed": "dataset_seed", "test_split_size": "test_split_size"}
PAGED = ("paged_adamw", "paged_adamw_32bit")
QUANTIZED = ("load_in_4bit", "load_in_8bit")


def read_mixture(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of one source (flags or a file) with the handbook's keys of data sets as options.

    Raises ConfigError where they do not have the handbook's form, or contradict an option.
    """
    found = {name: value for name, value in values.items() if name not in (MIXTURE, MIXER, *WITH_MIXER)}
    meant: dict[str, Any] = {}
    if _given(values, MIXTURE):
        meant |= _from_mixture(values[MIXTURE])
    if _given(values, MIXER):
        if "datasets" in meant:
            raise ConfigError(f"{MIXTURE} and {MIXER} both name the data sets; leave one of them out")
        meant |= _from_mixer(values)
    elif others := [name for name in WITH_MIXER if _given(values, name)]:
        raise ConfigError(
            f"{others[0]}={show(values[others[0]])} belongs to {MIXER}, which is not set; with dataset_name, set "
            "dataset_train_split, dataset_test_split and dataset_config"
        )
    for name, value in meant.items():
        if name in found and show(found[name]) != show(value):
            raise ConfigError(
                f"{name}={show(found[name])} contradicts {name}={show(value)} of the mixture; leave one of them out"
            )
    return {**found, **meant}


def _given(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    return value not in (None, "", [], {}, ()) and str(value).lower() not in UNSET


def _from_mixture(value: object) -> dict[str, Any]:
    rule = "a mapping with datasets, and optionally seed and test_split_size"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConfigError(f"{MIXTURE}={value} must be {rule}, in YAML or as JSON; correct it") from None
    if not isinstance(value, Mapping) or not value.get("datasets"):
        raise ConfigError(f"{MIXTURE}={show(value)} must be {rule}; correct it")
    known = {**_MIXTURE_KEYS, "streaming": "streaming"}
    if foreign := [str(key) for key in value if key not in known]:
        raise ConfigError(f"{MIXTURE} contains {foreign[0]}, and must be {rule}; leave it out")
    return {known[key]: part for key, part in value.items() if _given(value, key)}


def _from_mixer(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        weights = convert(values[MIXER], dict[str, float])
        splits = convert(values.get("dataset_splits"), tuple[str, ...]) or ("train", "test")
        configs = convert(values.get("dataset_configs"), tuple[str, ...])
    except ValueError as error:
        raise ConfigError(
            f"{MIXER}={show(values[MIXER])} must be a mapping of data sets to shares of their rows, and "
            f"{' and '.join(WITH_MIXER)} lists (found: {error}); correct it"
        ) from None
    if configs and len(configs) != len(weights):
        raise ConfigError(
            f"dataset_configs={show(configs)} must have one item for each of the {len(weights)} data sets of {MIXER}; "
            "correct it"
        )
    train, test = ([split for split in splits if word in split] for word in ("train", "test"))
    if not train or len(test) > 1 or len(train) + len(test) != len(splits):
        raise ConfigError(
            f"dataset_splits={show(splits)} must be splits with train in their names and at most one with test; change "
            "it, or name evaluation data with eval_dataset_name"
        )
    entries = [
        {"path": path, "name": config, "split": split, "weight": weight}
        for (path, weight), config in zip(weights.items(), configs or [None] * len(weights), strict=True)
        for split in train
    ]
    return {"datasets": entries, **({"dataset_test_split": test[0]} if test else {})}


def adapt(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that recipes word differently as options of raydpo, and a message about each change."""
    found, said = dict(values), []
    quantized = [name for name in QUANTIZED if name in found and _is(found[name], bool, True)]
    if quantized and (_is(found.get("use_peft"), bool, True) or _given(found, "model_adapter_name")):
        said.append(
            f"{quantized[0]}=true has no effect here: the adapter is trained on the base model as it is, not "
            "quantised, so that results are those of LoRA, and the base takes more memory"
        )
        found = {name: value for name, value in found.items() if name not in QUANTIZED}
        dtype = str(found.get("dtype", ""))
        if (dtype == "float16" and _is(found.get("bf16"), bool, True)) or (
            dtype == "bfloat16" and _is(found.get("fp16"), bool, True)
        ):
            del found["dtype"]
            said.append(
                f"torch_dtype={dtype} has no effect here: with a quantised base it is the dtype in which the other "
                "weights are loaded, and bf16 or fp16 sets the dtype of training"
            )
    if found.get("optim") in PAGED:
        said.append(
            f"optim={found.pop('optim')} has no effect here: it is AdamW, whose states are not paged here; "
            "offload=optimizer keeps them in CPU memory"
        )
    if _names_fraction(found.get("datasets")):
        said.append(
            "fraction is taken as weight, the share of a data set's own rows; TRL 1.16 takes it as the data set's "
            "share of the mixture"
        )
    return found, said


def _is(value: object, kind: type, wanted: object) -> bool:
    try:
        return value is not None and bool(convert(value, kind) == wanted)
    except ValueError:
        return False


def _names_fraction(entries: object) -> bool:
    parts = entries if isinstance(entries, list | tuple) else []
    if isinstance(entries, str):
        return '"fraction"' in entries
    return any(isinstance(entry, Mapping) and entry.get("fraction") is not None for entry in parts)
