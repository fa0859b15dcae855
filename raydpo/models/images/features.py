"""Encoding each image of a forward once, and giving its features to every place that its tokens have in the rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raydpo.errors import ModelError

GATHERED = ("pooler_output", "deepstack_features")
"""Fields of the output of `get_image_features` that models of transformers put into their rows: the features of images
at the input of the language model, and those that Qwen3-VL adds to the output of its first layers."""
ROW_ARGUMENTS = ("segments",)
"""Arguments of the language model's attention, which some models pass on to their vision tower too."""


def image_encoder(causal_lm: Any) -> Any:
    """Return the module whose forward calls its `get_image_features`. Raises ModelError where there is none."""
    body = causal_lm.base_model
    encoder = body if hasattr(body, "get_image_features") else causal_lm
    if not hasattr(encoder, "get_image_features"):
        raise ModelError(
            f"{type(causal_lm).__name__} does not put the features of images among its tokens (or takes no images at "
            "all), and only models that do can be trained on images; choose another model, or leave the images out"
        )
    return encoder


@contextmanager
def features_at(encoder: Any, index: Tensor, tokens: int | None) -> Iterator[None]:
    """Make the forward of `encoder` take the features of its images by `index`, within the context.

    The features of all images that the forward is given are rows in their order, `tokens` of them (None: any number),
    and `index` [places] names the one for each image token of the forward's rows, in their order. Raises ModelError, in
    the forward, where the vision tower gives another number of features.
    """
    original = encoder.get_image_features

    def get_image_features(*arguments: Any, **options: Any) -> Any:
        options = {name: value for name, value in options.items() if name not in ROW_ARGUMENTS}
        output = original(*arguments, **options)
        for name in GATHERED:
            if getattr(output, name, None) is not None:
                setattr(output, name, _gathered(getattr(output, name), index, tokens))
        return output

    encoder.get_image_features = get_image_features
    try:
        yield
    finally:
        del encoder.get_image_features


def _gathered(features: Any, index: Tensor, tokens: int | None) -> Any:
    """Return features by `index`, in the form of `features`: a tensor, one per image, or such forms by layer."""
    if isinstance(features, Tensor):
        rows = _rows(features, index, tokens)
        return rows if features.dim() == 2 else rows[None]
    if features and not isinstance(features[0], Tensor):  # by layer
        return [_gathered(layer, index, tokens) for layer in features]
    return (_rows(torch.cat([part.reshape(-1, part.shape[-1]) for part in features]), index, tokens),)


def _rows(features: Tensor, index: Tensor, tokens: int | None) -> Tensor:
    """Return features [..., H] by index, [places, H]."""
    rows = features.reshape(-1, features.shape[-1])
    if tokens is not None and tokens != len(rows):
        raise ModelError(
            f"the vision tower makes {len(rows)} features of images whose prompts have {tokens} image tokens; the "
            "processor's files are not those of the model: take both from one repository, with a new cache_dir"
        )
    return rows.index_select(0, index.to(rows.device))
