"""The names that the option `column_mapping` may map, and its rules."""

from collections.abc import Mapping

from raydpo.errors import ConfigError

CHOICE_TARGETS = ("best", "strength", "scores", "ranks")
"""Names of what tells the better one of several completions: its index or column, a signed strength of the preference,
their scores, or their ranks."""
MAPPING_TARGETS = (
    *("prompt", "chosen", "rejected", "system", "tools", "chat_template_kwargs", "history", "images"),
    *("completions", *CHOICE_TARGETS),
    *("weight", "margin", "score_chosen", "score_rejected", "ref_chosen_logps", "ref_rejected_logps"),
)


def check_column_mapping(mapping: Mapping[str, str]) -> None:
    """Raise ConfigError if a mapping from names to columns cannot be followed."""
    shown = " ".join(f"{target}={path}" for target, path in mapping.items())
    for target, path in mapping.items():
        if target not in MAPPING_TARGETS:
            raise ConfigError(
                f"column_mapping={shown} maps {target}, which is not one of {', '.join(MAPPING_TARGETS)}; write "
                "name=column, such as prompt=question"
            )
        if not all(path.split("+")):
            raise ConfigError(f"column_mapping={shown} gives {target} no column; write {target}=COLUMN or leave it out")
    choices = [target for target in CHOICE_TARGETS if target in mapping]
    if len(choices) != ("completions" in mapping):
        raise ConfigError(
            f"column_mapping={shown} must map completions together with one of {', '.join(CHOICE_TARGETS)}, which "
            "tells the better one; add what is missing, or leave it out"
        )
    if both := {"chosen", "rejected"} & mapping.keys() if choices else set():
        raise ConfigError(f"column_mapping={shown} maps completions and {min(both)}; leave one of them out")
