"""The FLOPs of an encoder-decoder's forward, from its config."""

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from raydpo.batching.seq2seq_flops import Seq2SeqFlopsModel

_CROSS_KEYS = re.compile(
    r"(encdecattention|encoder_attn|cross_?attn|cross_?attention)\.(.*\.)?(k|v|[kv]_proj|key|value)\."
)
"""Names, in lower case, of the weights that make keys and values of the encoder's output."""


def seq2seq_flops_model(config: Any) -> Seq2SeqFlopsModel:
    """Return the FLOPs of an encoder-decoder's forward from its Hugging Face config.

    This takes tenths of a second and no memory for weights. All experts of a mixture count. A model whose code comes
    with its weights is taken for a standard transformer, with 12 d² parameters per encoder layer and 16 d² per decoder
    layer of hidden size d, of which 2 d² make the keys and values of cross-attention.
    """
    encoder_layers, encoder_width, _ = _stack(config, "encoder")
    layers, width, hidden = _stack(config, "decoder")
    encoder, decoder, cross = _parameters(config, encoder_layers, layers, hidden)
    vocabulary = next(
        size
        for size in (
            getattr(config, "vocab_size", None),
            getattr(config, "tgt_vocab_size", None),
            _part(config).vocab_size,
        )
        if size
    )
    return Seq2SeqFlopsModel(
        token=2.0 * (decoder - cross),
        completion_token=2.0 * hidden * vocabulary,
        attention=((4.0 * width * layers, None),),
        encoder_token=2.0 * encoder,
        encoder_pair=4.0 * encoder_width * encoder_layers,
        cross_token=2.0 * cross,
        cross_pair=4.0 * width * layers,
    )


def _part(config: Any, side: str = "decoder") -> Any:
    """Return the config of the encoder or decoder, which is that of the model itself if it has no such part."""
    part: Any = getattr(config, side, None)
    return part.get_text_config() if isinstance(part, PreTrainedConfig) else config


def _stack(config: Any, side: str) -> tuple[int, int, int]:
    """Return the number of layers, the width of attention (heads x head size) and the hidden size of one side."""
    part = _part(config, side)
    hidden = part.hidden_size
    named = (f"{side}_layers", f"num_{side}_layers", "num_hidden_layers")
    layers = next(int(value) for name in named if (value := getattr(part, name, None)))
    heads = next(
        int(value)
        for name in (f"{side}_attention_heads", f"num_{side}_attention_heads", "num_attention_heads")
        if (value := getattr(part, name, None))
    )
    size = getattr(part, "d_kv", None) or getattr(part, "head_dim", None) or hidden // heads
    return layers, heads * size, hidden


def _parameters(config: Any, encoder_layers: int, layers: int, hidden: int) -> tuple[float, float, float]:
    """Return the parameters of encoder and decoder, without embeddings and head, and those of `_CROSS_KEYS`."""
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        square = float(hidden**2)
        return 12 * square * encoder_layers, 16 * square * layers, 2 * square * layers
    families: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    with torch.device("meta"):
        model = families[type(config)](copy.deepcopy(config))
    head = model.get_output_embeddings()
    left_out = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in [module.weight]
    }
    left_out |= {id(weight) for weight in ([] if head is None else head.parameters())}
    encoder, decoder = (
        [(name, weight.numel()) for name, weight in part.named_parameters() if id(weight) not in left_out]
        for part in (model.get_encoder(), model.get_decoder())
    )
    cross = sum(count for name, count in decoder if _CROSS_KEYS.search(name.lower()))
    return sum(count for _, count in encoder), sum(count for _, count in decoder), cross
