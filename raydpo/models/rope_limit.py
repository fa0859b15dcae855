"""Which models rotate positions by factors that depend on the length of the whole row, by their config alone.

Imports neither torch nor transformers, as `models.plan` does not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope", "su"})
"""Values of `rope_type` whose factors change once a row is longer than the length of pretraining. "su" is the name that
the first Phi-3 models have for longrope."""


def rope_limit(config: Any) -> int | None:
    """Return the number of tokens up to which all sequences have the same rotary factors; None: they always have.

    Transformers computes the factors from the largest position of all rows of a forward. So beyond this length, a
    sequence's log-probs would depend on its neighbours. Here each sequence has the factors of its own length, which are
    those that the model's own forward has for the sequence alone (`models.rope_rows`).
    """
    limits = list(_limits(config))
    return min(limits) if limits else None


def _limits(config: Any) -> Iterator[int]:
    text = config.get_text_config()
    for parameters in _parameters(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)):
        kind = str(parameters.get("rope_type", parameters.get("type")))
        if kind not in LENGTH_DEPENDENT:
            continue
        original = parameters.get("original_max_position_embeddings")
        original = original or getattr(text, "original_max_position_embeddings", None)
        whole = getattr(text, "max_position_embeddings", None)
        # The dynamic type grows from the positions that the config has, whatever else it names.
        yield int((whole if kind == "dynamic" else original or whole) or 0)


def _parameters(found: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of each type of layer."""
    if not isinstance(found, Mapping):
        return
    if "rope_type" in found or "type" in found:
        yield found
    yield from (part for part in found.values() if isinstance(part, Mapping) and ("rope_type" in part))
