"""The FLOPs of a model's forward, from its config, and the peak FLOP/s of a device: the two inputs of MFU."""

import copy
import re
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING

from raydpo.batching.flops import FlopsModel
from raydpo.models.seq2seq import is_encoder_decoder
from raydpo.models.seq2seq_flops import seq2seq_flops_model

# The config names, across model families, of the number of experts and of the experts per token.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
    "moe_k",
)

# Layer types without attention between individual tokens.
NON_ATTENTION_LAYERS = ("linear_attention", "conv", "moe")

PEAK_FLOPS: dict[str, float] = {
    # NVIDIA Blackwell and Hopper
    "GB300": 2500e12,
    "B300": 2250e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H200 NVL": 836e12,
    "H100": 989e12,
    "H100 NVL": 836e12,
    "H100 PCIe": 756e12,
    "H800": 989e12,
    "H800 PCIe": 756e12,
    "H20": 148e12,
    # NVIDIA Ada
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119.5e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165.2e12,
    # NVIDIA Ampere
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "RTX A6000": 154.8e12,
    "RTX 3090": 71e12,
    # NVIDIA Volta and Turing, in float16, as they have no bfloat16
    "V100": 125e12,
    "V100-PCIE": 112e12,
    "T4": 65e12,
    # AMD; an MI250 or MI250X appears as two devices, each with half of the published figure
    "MI355X": 2500e12,
    "MI350X": 2300e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI300A": 980e12,
    "MI250X": 191.5e12,
    "MI250": 181e12,
    "MI210": 181e12,
}
"""Peak bfloat16 FLOP/s by words of the name that `torch.cuda.get_device_name` returns, from the vendors' data sheets:
of dense matrices (half of the figure "with sparsity"), with products summed in float32."""

PARTIAL_DEVICE_WORDS = ("MIG", "Laptop", "Max-Q")
"""Words in the names of devices that are a partition or a slower variant of the named device."""


def peak_flops(device_name: str) -> float | None:
    """Return the peak FLOP/s of a device, or None if no table entry matches its name; the longest match counts."""
    if _has_word(device_name, PARTIAL_DEVICE_WORDS):
        return None
    known = [entry for entry in PEAK_FLOPS if _has_word(device_name, (entry,))]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def _has_word(name: str, words: tuple[str, ...]) -> bool:
    """Return whether any of the words occurs in the name as a whole word, so that an "RTX A1000" is not an A10."""
    return any(re.search(rf"(?<![0-9A-Za-z]){re.escape(word)}(?![0-9A-Za-z])", name, re.IGNORECASE) for word in words)


def flops_model(config: Any) -> FlopsModel:
    """Return the FLOPs of a decoder's, or of an encoder-decoder's, forward from its Hugging Face config.

    This takes tenths of a second and no memory for weights. A mixture of experts counts only the experts that a token
    is routed to. A model whose code comes with its weights is unknown to transformers and is taken for a standard
    transformer: 12 d² parameters per layer of hidden size d, of which 4 d² are for attention and 8 d² for a
    feed-forward layer four times as wide.
    """
    if is_encoder_decoder(config):
        return seq2seq_flops_model(config)
    decoder = config.get_text_config()
    head = 2 * decoder.hidden_size * decoder.vocab_size
    return FlopsModel(2 * _active_parameters(decoder), head, _attention(decoder))


def _active_parameters(config: Any) -> float:
    """Return the number of parameters that a token is multiplied with, without embeddings and head.

    Experts are the parameters below a module named `experts`. All of them count if the config has the number of
    experts, or of experts per token, under none of the usual names.
    """
    if type(config) not in MODEL_MAPPING:
        return float(12 * config.num_hidden_layers * config.hidden_size**2)
    own = copy.deepcopy(config)
    own._attn_implementation = "eager"  # the implementation that the model is loaded with may not be installed here
    # Not with `from_config`, which would partition the weights among the ranks under ZeRO-3.
    with torch.device("meta"):
        body = _body(own)
    embeddings = {
        id(weight)
        for module in body.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    }
    share = _active_share(config)
    return sum(
        weight.numel() * (share if ".experts." in name else 1.0)
        for name, weight in body.named_parameters()
        if id(weight) not in embeddings
    )


def _body(config: Any) -> nn.Module:
    """Build the decoder without its output head."""
    families: Any = MODEL_MAPPING  # its annotations allow a missing class and several classes
    body: nn.Module = families[type(config)](config)
    return body


def _active_share(config: Any) -> float:
    """Return the fraction of the experts that a token is routed to; 1 if the config does not give it."""
    per_token, experts = (
        next((getattr(config, name) for name in names if getattr(config, name, None)), None)
        for names in (EXPERTS_PER_TOKEN, EXPERTS)
    )
    return per_token / experts if per_token and experts else 1.0


def _attention(config: Any) -> tuple[tuple[float, int | None], ...]:
    """Return `FlopsModel.attention`: 2 x heads x (key size + value size), summed over layers of equal window."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return ()
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention: keys have extra dimensions for positions
        key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    else:
        key = value = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = Counter(_windows(config))
    return tuple((2.0 * heads * (key + value) * count, window) for window, count in layers.items())


def _windows(config: Any) -> list[int | None]:
    """Return the attention window of each layer with attention, in tokens; None for full attention.

    Chunked attention counts as a window of its chunk size, and other kinds of sparse attention count as full attention.
    """
    sliding = getattr(config, "sliding_window", None) or None
    bounds = {
        "sliding_attention": sliding,
        "hybrid_sliding": sliding,
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # a family with one kind of layer, such as Mistral
        return [sliding] * config.num_hidden_layers
    return [bounds.get(kind) for kind in kinds if kind not in NON_ATTENTION_LAYERS]
