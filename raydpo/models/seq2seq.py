"""The forward of an encoder-decoder (T5, BART): its encoder reads each prompt once, for all completions of it.

The decoder reads a completion shifted to the right by one token, so that it predicts the completion itself, first token
included. Shifting is the model's own rule: most begin with `decoder_start_token_id`, mBART and PLBART with the language
code that stands at the end of the completion.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from raydpo.batching.flops import padded_width
from raydpo.batching.micro_batch import MicroBatch
from raydpo.blocks.schema import IntArray
from raydpo.errors import ModelError
from raydpo.models.device import to_device
from raydpo.models.inputs import BodyInputs
from raydpo.models.rope_limit import rope_limit

Shift = Callable[[Tensor], Tensor]
"""Function from labels [1, T] to the decoder's input [1, T]."""

_REFUSED = {
    "bigbird_pegasus": "its encoder attends to random blocks, and to other tokens beside longer rows, unless "
    "attention_type is original_full in its config.json",
    "nllb-moe": "in training, its router drops tokens beyond a capacity that depends on the rest of the batch",
    "fsmt": "its output embedding is the decoder's input embedding, and no module of its own",
    "prophetnet": "it predicts several tokens at each position, and no single log-prob",
}
"""Encoder-decoders of `AutoModelForSeq2SeqLM` that cannot be trained, by model type, each with the reason."""


def is_encoder_decoder(config: Any) -> bool:
    """Return whether a model with this Hugging Face config is an encoder-decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def check_seq2seq_config(name: str, config: Any) -> None:
    """Raise ModelError if the encoder-decoder `name` with this config cannot be trained."""
    reason = _REFUSED.get(config.model_type)
    if config.model_type == "bigbird_pegasus" and config.attention_type == "original_full":
        reason = None
    if reason is None and any(rope_limit(part) is not None for part in _parts(config)):
        reason = "its rotary factors depend on the longest row of a forward"
    if reason is None and "AutoModelForSeq2SeqLM" not in (getattr(config, "auto_map", None) or {}):
        known = type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        reason = None if known else "AutoModelForSeq2SeqLM does not load it"
    if reason is not None:
        raise ModelError(
            f"model {name!r} ({config.model_type}) is an encoder-decoder that cannot be trained: {reason}; choose "
            "another, such as a T5 or BART model"
        )


def _parts(config: Any) -> list[Any]:
    """Return the config and those of its encoder and decoder, where it has them."""
    parts = [getattr(config, side, None) for side in ("encoder", "decoder")]
    return [config, *(part for part in parts if isinstance(part, PreTrainedConfig))]


def shift_of(model: Any) -> Shift:
    """Return the model's own rule for the decoder's input. Raises ModelError where its config lacks what it needs."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is None:  # models that shift their labels in their forward, with a function of their module
        function, config = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None), model.config
        if function is not None:
            pad, start = config.pad_token_id, config.decoder_start_token_id
            shift = lambda labels: function(labels, pad, start)  # noqa: E731
    try:
        first = None if shift is None else shift(torch.tensor([[5, 6]]))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot make the decoder's input from a completion: {error}; set "
            "decoder_start_token_id and pad_token_id in its config.json"
        ) from error
    if shift is None or first is None:
        raise ModelError(
            f"{type(model).__name__} has no rule that makes the decoder's input from a completion; choose another "
            "encoder-decoder, such as a T5 or BART model"
        )
    found: Shift = shift
    return found


@dataclass(frozen=True)
class Seq2SeqRows:
    """A micro-batch as P rows for the encoder and R rows for the decoder, padded on the right to W and T tokens."""

    prompts: IntArray
    """[P, W]: token ids of each distinct prompt."""
    prompt_mask: IntArray
    """[P, W]: 1 for a token, 0 for padding."""
    prompt_of: IntArray
    """[R]: row in `prompts` of each completion."""
    decoder_ids: IntArray
    """[R, T]: token ids of each completion, shifted to the right."""
    decoder_mask: IntArray
    """[R, T]: 1 for a token, 0 for padding."""
    multiplicity: IntArray
    """[R, T]: number of the 2B sequences that contain the row's completion; 0 for padding."""
    predictors: IntArray
    """[N]: index into the flattened R * T tokens of the position that predicts each of `MicroBatch.targets`."""


def to_seq2seq_rows(batch: MicroBatch, shift: Shift, pad: int) -> Seq2SeqRows:
    """Return a row per distinct prompt and one per completion, in the order of the layout, filled up with `pad`.

    A batch without completions gives one row of one token of either kind.
    """
    layout, ids = batch.layout, batch.input_ids
    spans = layout.completions or ((0, 1, 0),)
    places: dict[bytes, int] = {}
    prompts: list[IntArray] = []
    prompt_of = []
    for _, _, prompt in spans:
        begin, end = layout.prompts[prompt] if layout.completions else (0, 1)
        content = ids[begin:end].tobytes()
        if content not in places:
            places[content] = len(prompts)
            prompts.append(ids[begin:end])
        prompt_of.append(places[content])
    labels = [ids[start:stop] for start, stop, _ in spans]
    # One by one, as the rule of some models looks for the last token that is no padding, which a filler may not have.
    inputs = [shift(torch.from_numpy(row.copy())[None])[0].numpy() for row in labels] if layout.completions else labels
    prompt_rows, prompt_mask = _padded(prompts, pad)
    decoder_rows, decoder_mask = _padded(inputs, pad)
    width = decoder_rows.shape[1]
    place = np.zeros(len(ids), dtype=np.int64)
    multiplicity = np.zeros_like(decoder_mask)
    for row, (start, stop, _) in enumerate(layout.completions):
        place[start:stop] = np.arange(row * width, row * width + stop - start)
        multiplicity[row, : stop - start] = batch.multiplicity[start]
    return Seq2SeqRows(
        prompts=prompt_rows,
        prompt_mask=prompt_mask,
        prompt_of=np.array(prompt_of, dtype=np.int64),
        decoder_ids=decoder_rows,
        decoder_mask=decoder_mask,
        multiplicity=multiplicity if layout.completions else decoder_mask,
        predictors=place[batch.target_positions],
    )


def _padded(rows: list[IntArray], pad: int) -> tuple[IntArray, IntArray]:
    """Return the rows, padded to one width, and their mask."""
    width = padded_width(max(map(len, rows)))
    ids, mask = (np.full((len(rows), width), value, dtype=np.int64) for value in (pad, 0))
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return ids, mask


def seq2seq_inputs(batch: MicroBatch, device: torch.device, model: Any, shift: Shift) -> BodyInputs:
    """Encode the prompts of a micro-batch, and return the arguments with which the decoder reads its completions.

    `model` is the transformers model, without an adapter around it, and `shift` its `shift_of`. Each prompt is encoded
    once, and gradients of all its completions flow into that one output.
    """
    pad = getattr(model.config, "pad_token_id", None)
    rows = to_seq2seq_rows(batch, shift, 0 if pad is None else int(pad))
    mask = to_device(rows.prompt_mask, device)
    encoded = model.get_encoder()(input_ids=to_device(rows.prompts, device), attention_mask=mask, return_dict=True)
    hidden = encoded.last_hidden_state
    prompt_of = to_device(rows.prompt_of, hidden.device)
    arguments = {
        "encoder_outputs": type(encoded)(last_hidden_state=hidden.index_select(0, prompt_of)),
        "attention_mask": mask.index_select(0, prompt_of.to(device)),
        "decoder_input_ids": to_device(rows.decoder_ids, device),
        "decoder_attention_mask": to_device(rows.decoder_mask, device),
    }
    return BodyInputs(arguments, rows.predictors, rows.multiplicity)
