"""What a model's forward costs, and what a device could do at best: the two sides of MFU."""

import copy
import re
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING

from raydpo.batching.flops import FlopsModel

# What families call the number of experts, and of those that a token goes through.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
    "moe_k",
)

# Layers in which the tokens of a sequence do not look at each other, or not one by one.
WITHOUT_ATTENTION = ("linear_attention", "conv", "moe")

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
    # NVIDIA Volta and Turing, in float16: they have no bfloat16
    "V100": 125e12,
    "V100-PCIE": 112e12,
    "T4": 65e12,
    # AMD; a MI250 or MI250X appears as two devices, each half of the published number
    "MI355X": 2500e12,
    "MI350X": 2300e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI300A": 980e12,
    "MI250X": 191.5e12,
    "MI250": 181e12,
    "MI210": 181e12,
}
"""FLOP/s in bfloat16 by words of the name that `torch.cuda.get_device_name` gives, from the vendors' data sheets: of
dense matrices (half of what they name "with sparsity"), products summed in float32."""

PART_OF_A_DEVICE = ("MIG", "Laptop", "Max-Q")
"""Words of names whose device is a share or a slower make of the one named."""


def peak_flops(device_name: str) -> float | None:
    """FLOP/s that a device could do at best, where its name is in the table (the longest entry counts), or None."""
    if _has_word(device_name, PART_OF_A_DEVICE):
        return None
    known = [entry for entry in PEAK_FLOPS if _has_word(device_name, (entry,))]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def _has_word(name: str, words: tuple[str, ...]) -> bool:
    """Whole words only, so that an "RTX A1000" is no A10."""
    return any(re.search(rf"(?<![0-9A-Za-z]){re.escape(word)}(?![0-9A-Za-z])", name, re.IGNORECASE) for word in words)


def flops_model(config: Any) -> FlopsModel:
    """The work of a decoder's forward, by its Hugging Face config: takes tenths of a second, and no memory for weights.

    A mixture of experts counts the experts that a token is sent to. A model whose code comes with its weights is not
    known to transformers and is taken for a usual one: 12 d² parameters for each layer of hidden size d, of which 4 d²
    are attention's and 8 d² those of a feed-forward part four times as wide.
    """
    decoder = config.get_text_config()
    head = 2 * decoder.hidden_size * decoder.vocab_size
    return FlopsModel(2 * _active_parameters(decoder), head, _attention(decoder))


def _active_parameters(config: Any) -> float:
    """Parameters that a token goes through, without embeddings and head.

    Experts are the parameters below a module named `experts`; all count where the config gives their number, or that
    of those a token is sent to, under none of the usual names.
    """
    if type(config) not in MODEL_MAPPING:
        return float(12 * config.num_hidden_layers * config.hidden_size**2)
    own = copy.deepcopy(config)
    own._attn_implementation = "eager"  # whatever the model is loaded with may not be installed here
    # Not `from_config`: under ZeRO-3 that would share the weights out among the ranks.
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
    families: Any = MODEL_MAPPING  # its annotations allow for a missing class, and for several
    body: nn.Module = families[type(config)](config)
    return body


def _active_share(config: Any) -> float:
    per_token, experts = (
        next((getattr(config, name) for name in names if getattr(config, name, None)), None)
        for names in (EXPERTS_PER_TOKEN, EXPERTS)
    )
    return per_token / experts if per_token and experts else 1.0


def _attention(config: Any) -> tuple[tuple[float, int | None], ...]:
    """`FlopsModel.attention`: 2 x heads x (size of a key + size of a value) for each layer with attention."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return ()
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention: keys carry positions besides
        key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    else:
        key = value = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = Counter(_windows(config))
    return tuple((2.0 * heads * (key + value) * count, window) for window, count in layers.items())


def _windows(config: Any) -> list[int | None]:
    """Of each layer with attention, how far it looks; a chunk is taken for a window, other sparse kinds for full."""
    sliding = getattr(config, "sliding_window", None) or None
    bounds = {
        "sliding_attention": sliding,
        "hybrid_sliding": sliding,
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # a family whose layers are all alike, such as Mistral
        return [sliding] * config.num_hidden_layers
    return [bounds.get(kind) for kind in kinds if kind not in WITHOUT_ATTENTION]
