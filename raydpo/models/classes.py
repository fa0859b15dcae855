"""Which class of transformers loads a model with all its parts, and the attention of each part."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from raydpo.models.attention.choice import IMPLEMENTATIONS


def auto_class(config: Any) -> Any:
    """Return the Auto class of transformers that loads every part of a model with this config.

    A vision-language model has a class for images and text, with vision tower and projector. Some of them have a class
    for text alone too, which a checkpoint may name in `architectures`. A model with code of its own is loaded by the
    class that its code names.
    """
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    families: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING  # annotated with classes that may be missing
    if type(config) not in families:
        return AutoModelForCausalLM
    decoders: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    text_only = decoders[type(config)].__name__ if type(config) in decoders else None
    if text_only in (getattr(config, "architectures", None) or ()):
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def is_vision_language(config: Any) -> bool:
    """Return whether a model with this config is loaded with its vision tower."""
    return auto_class(config) is AutoModelForImageTextToText and config.get_text_config() is not config


def by_part(config: Any, implementation: str | None) -> Any:
    """Return `attn_implementation` for `from_pretrained`: attention over packed rows is for the text model only.

    A vision tower keeps the attention that it chooses by itself. Other values apply to all parts.
    """
    text = config.get_text_config()
    if text is config or implementation not in IMPLEMENTATIONS.values():
        return implementation
    return {key: implementation for key in config.sub_configs if getattr(config, key, None) is text}
