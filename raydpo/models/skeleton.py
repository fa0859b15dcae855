"""The skeleton of a model: its modules and the shapes of its weights, without the weights, built in a second.

It answers on the driver what otherwise a worker finds after minutes of loading. Where a model cannot be built without
its weights, those questions stay open, and the workers answer them.
"""

import copy
import logging
import re
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from raydpo.errors import ModelError
from raydpo.models.attention.kernels import register_attention
from raydpo.models.classes import auto_class, by_part
from raydpo.models.loading import LOAD_ERRORS
from raydpo.models.lora_targets import outside_language_model
from raydpo.models.source import weight_files

_log = logging.getLogger(__name__)

POSITIONS = re.compile(r"wpe|position_embed|embed_position")
"""Matches the names of embeddings of positions."""
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")
"""Matches the usual names of an input embedding's weight in files."""

BUILD_ERRORS = (*LOAD_ERRORS, AttributeError, TypeError, AssertionError, ArithmeticError, LookupError)
"""Errors of a model's own code for which building it on the meta device is reason enough."""


def build_skeleton(
    config: Any, *, attn_implementation: str | None, trust_remote_code: bool, name: str
) -> PreTrainedModel | None:
    """Return the model that a Hugging Face config describes, on the meta device; None where that cannot be built.

    Raises ModelError if it can be built only without the attention implementation, which is then the fault. `name` is
    the model's, for messages.
    """
    register_attention()
    built = _build(config, attn_implementation, trust_remote_code)
    if isinstance(built, PreTrainedModel):
        return built
    reason = " ".join(str(built).split())[:500] or type(built).__name__
    wanted = attn_implementation is not None and not isinstance(built, ImportError)
    if wanted and isinstance(_build(config, None, trust_remote_code), PreTrainedModel):
        raise ModelError(
            f"attn_implementation={attn_implementation} does not work for {name!r}: {reason}; leave it out, or set it "
            "to sdpa or eager"
        )
    _log.info("The structure of %r is checked only by the workers, as it cannot be built here: %s", name, reason)
    return None


def _build(config: Any, attn_implementation: str | None, trust_remote_code: bool) -> Any:
    """Return the model on the meta device, or the error with which its code refuses."""
    arguments: dict[str, Any] = {}
    if attn_implementation is not None:
        arguments["attn_implementation"] = by_part(config, attn_implementation)
    try:
        with torch.device("meta"):
            # A copy, as building a model writes into its config.
            return auto_class(config).from_config(
                copy.deepcopy(config), trust_remote_code=trust_remote_code, **arguments
            )
    except BUILD_ERRORS as error:
        return error


def embedding_rows(model: PreTrainedModel) -> tuple[int, int | None]:
    """Return the number of token ids that the input embedding has a row for, and the number of those with a logit.

    The second is None for a model without an output embedding.
    """
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    weight = getattr(outputs, "weight", None)
    return int(inputs.weight.shape[0]), None if weight is None else int(weight.shape[0])


def learned_positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions that a model has learned embeddings for; None where positions are computed."""
    outside = outside_language_model(model)  # a tower for images may have learned positions of its own
    learned = any(
        isinstance(module, nn.Embedding) and POSITIONS.search(path.rpartition(".")[2]) and path not in outside
        for path, module in model.named_modules()
    )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if learned and limit and not model.config.is_encoder_decoder else None


def stored_embedding_rows(folder: str) -> int | None:
    """Return the number of rows of the input embedding in a model's weight files, from their headers alone.

    None where the files are not safetensors, or where not exactly one weight has the usual name of an input embedding.
    """
    rows: list[int] = []
    for path in weight_files(folder):
        if not path.endswith(".safetensors"):
            return None
        with safe_open(path, framework="pt") as file:
            rows += [int(file.get_slice(name).get_shape()[0]) for name in file.keys() if EMBEDDING.search(name)]  # noqa: SIM118
    return rows[0] if len(rows) == 1 else None
