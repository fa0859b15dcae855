"""Read options from flags and YAML as text, by name; `Section` converts them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_origin

import yaml

from raydpo.config.fields import BOOLEANS
from raydpo.errors import ConfigError


def unknown_option(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an unknown option name; it suggests the most similar known one."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return ConfigError(f"{name} is not an option; the nearest is {close[0]}; --help lists all of them")


def read_flags(argv: Sequence[str], hints: Mapping[str, Any]) -> dict[str, str]:
    """Return command-line flags as {name: text}; the last of repeated flags wins, list values are joined by commas.

    Accepts --name value, --name=value, --name (true) and --no_name (false) for booleans, and dashes for underscores. A
    flag whose hint is `object` takes any number of words; without words it is true. Raises ConfigError for an unknown
    flag, and for missing or surplus values.
    """
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        flag, separator, text = words.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ConfigError(
                f"unexpected argument {flag}; write options as --name value, and see --help for their names"
            )
        values = [text] if separator else []
        while not separator and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        name = flag[2:].replace("-", "_")
        negated = name.removeprefix("no_")
        if name not in hints and negated != name and hints.get(negated) in BOOLEANS and not values:
            found[negated] = "false"
            continue
        if name not in hints:
            raise unknown_option(name, hints)
        found[name] = _flag_text(name, hints[name], values)
    return found


def _flag_text(name: str, hint: Any, values: list[str]) -> str:
    if hint in BOOLEANS and not values:
        return "true"
    if hint is object:
        return " ".join(values) or "true"
    if get_origin(hint) in (tuple, dict):
        return ",".join(values)
    if len(values) != 1:
        raise ConfigError(f"--{name} takes one value, not {len(values)} ({' '.join(values)}); write --{name} VALUE")
    return values[0]


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file as {name: text, or lists and mappings of text}. Raises ConfigError if that fails.

    Scalars stay text, because YAML 1.1 would read `eval_strategy: no` as false and `learning_rate: 1e-6` as a string.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        content = yaml.load(text, Loader=yaml.BaseLoader)  # BaseLoader builds only str, list and dict
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    if content in (None, ""):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"the config file {path} must contain `name: value` lines, not a {type(content).__name__}; correct it"
        )
    keys = [str(key.value) for key, _ in root.value]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"the config file {path} sets {twice[0]} twice; remove one of the lines")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
