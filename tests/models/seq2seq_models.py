"""Small encoder-decoders of every family that `AutoModelForSeq2SeqLM` builds and that can be trained."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BlenderbotConfig,
    BlenderbotSmallConfig,
    EncoderDecoderConfig,
    LEDConfig,
    LongT5Config,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MT5Config,
    MvpConfig,
    PegasusConfig,
    PegasusXConfig,
    PLBartConfig,
    SeamlessM4TConfig,
    SeamlessM4Tv2Config,
    SwitchTransformersConfig,
    T5Config,
    T5Gemma2Config,
    T5GemmaConfig,
    UMT5Config,
)

VOCABULARY = 264
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_GEMMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6}
_SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 2}
_SEAMLESS = {**_BART, "hidden_size": 16, "t2u_vocab_size": VOCABULARY}


def _bert2bert() -> EncoderDecoderConfig:
    decoder = BertConfig(**_BERT, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**_BERT), decoder)
    config.update(_SPECIAL)
    return config


def _t5gemma2() -> T5Gemma2Config:
    vision = {**_BERT, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    encoder = {"text_config": dict(_GEMMA), "vision_config": vision}
    return T5Gemma2Config(encoder=encoder, decoder=dict(_GEMMA), vocab_size=VOCABULARY, image_token_index=3, **_SPECIAL)


CORE: dict[str, Callable[[], Any]] = {
    "t5": lambda: T5Config(**_T5),
    "t5-untied": lambda: T5Config(**_T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
    "umt5": lambda: UMT5Config(**_T5),
    "longt5-global": lambda: LongT5Config(
        **_T5, encoder_attention_type="transient-global", local_radius=5, global_block_size=4
    ),
    "switch": lambda: SwitchTransformersConfig(
        **_T5, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4, expert_capacity=3
    ),
    "t5gemma": lambda: T5GemmaConfig(
        encoder=dict(_GEMMA), decoder={**_GEMMA, "final_logit_softcapping": 2.0}, vocab_size=VOCABULARY, **_SPECIAL
    ),
    "bart": lambda: BartConfig(**_BART),
    "mbart": lambda: MBartConfig(**_BART, scale_embedding=True),
    "marian": lambda: MarianConfig(**_BART),
    "led": lambda: LEDConfig(
        **_BART, max_encoder_position_embeddings=128, max_decoder_position_embeddings=128, attention_window=8
    ),
    "m2m_100": lambda: M2M100Config(**_BART),
}
"""Configs of families that differ: by position, head, scale, mask, router, and rule for the decoder's input."""
MORE: dict[str, Callable[[], Any]] = {
    "mt5": lambda: MT5Config(**_T5),
    "longt5-local": lambda: LongT5Config(**_T5, local_radius=5),
    "t5gemma2": _t5gemma2,
    "bert2bert": _bert2bert,
    "pegasus": lambda: PegasusConfig(**_BART),
    "pegasus_x": lambda: PegasusXConfig(**_BART, block_size=8, num_global_tokens=4),
    "plbart": lambda: PLBartConfig(**_BART),
    "mvp": lambda: MvpConfig(**_BART),
    "blenderbot": lambda: BlenderbotConfig(**_BART),
    "blenderbot-small": lambda: BlenderbotSmallConfig(**_BART),
    "seamless_m4t": lambda: SeamlessM4TConfig(**_SEAMLESS),
    "seamless_m4t_v2": lambda: SeamlessM4Tv2Config(**_SEAMLESS),
}


def build(config: Any) -> Any:
    """Return a model with fixed weights, none of which is 0, in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model


def plain_logps(model: Any, prompt: Any, completion: Any) -> torch.Tensor:
    """Return the log-prob [tokens] of each token of a completion, by the model's own forward of that pair alone."""
    ids, labels = (torch.tensor(part, dtype=torch.int64)[None] for part in (prompt, completion))
    logits = model(input_ids=ids, labels=labels).logits[0].float()
    return logits.log_softmax(-1).gather(1, labels[0, :, None])[:, 0]
