"""Configs of any model of transformers, shrunk by the names of their fields, with every factor and cap in effect."""

import dataclasses
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

VOCABULARY = 96
WORDS = range(5, 80)
"""Token ids of the tests' sequences: none is a special token or a placeholder of an image."""


def _named(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, Any] = {
    **_named(VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size"),
    **_named(
        32,
        "hidden_size n_embd d_model embed_dim embedding_size input_embedding_size output_embedding_size emb_dim "
        "embedding_dim word_embed_proj_dim lru_width attention_hidden_size linear_head_dim out_hidden_size dim "
        "backbone_hidden_size text_hidden_size projection_dim",
    ),
    **_named(
        48,
        "intermediate_size ffn_dim ffn_hidden_size d_inner dff dim_ff decoder_ffn_dim encoder_ffn_dim "
        "intermediate_size_mlp shared_intermediate_size dense_intermediate_size prefix_dense_intermediate_size "
        "block_ffn_dim feed_forward_size",
    ),
    **_named(64, "n_inner mamba_d_ssm"),
    **_named(
        2,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks depth "
        "num_layers_per_stack",
    ),
    **_named(1, "encoder_layers num_encoder_layers"),
    **_named(
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads mamba_n_heads mamba_num_heads linear_num_value_heads "
        "swa_num_attention_heads linear_num_heads indexer_n_heads n_mamba_heads",
    ),
    **_named(
        2,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_global_key_value_heads "
        "indexer_kv_heads",
    ),
    **_named(
        8,
        "head_dim swa_head_dim global_head_dim dim_head d_head kv_channels qk_rope_head_dim v_head_dim "
        "attention_head_size linear_key_head_dim linear_value_head_dim index_head_dim indexer_head_dim "
        "query_pre_attn_scalar rotary_dim",
    ),
    **_named(16, "qk_nope_head_dim q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim mamba_headdim o_lora_rank"),
    "qk_head_dim": 24,
    # With few heads, several tokens of an index have the score 0, and which of them are chosen depends on the layout.
    "index_n_heads": 16,
    **_named(8, "mamba_d_state state_size ssm_state_size laurel_rank adapter_rank hidden_size_per_layer_input"),
    **_named(4, "mamba_d_conv conv_kernel mamba_dt_rank time_step_rank"),
    **_named(1, "mamba_n_groups n_groups mamba_ngroups"),
    **_named(128, "max_position_embeddings n_positions n_ctx max_seq_len seq_length context_length"),
    **_named(128, "max_target_positions max_source_positions"),
    **_named(
        4, "num_local_experts num_experts n_routed_experts moe_num_experts num_centroids altup_num_inputs index_topk"
    ),
    **_named(
        2,
        "num_experts_per_tok moe_k moe_topk top_k top_k_experts moe_top_k centroid_intermediate_top_k hc_mult "
        "type_vocab_size expand mamba_expand expansion_ratio",
    ),
    **_named(
        16,
        "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
        "expert_ffn_hidden_size shared_experts_intermediate_size router_hidden_size moe_latent_size",
    ),
    **_named(
        1,
        "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group first_k_dense_replace "
        "num_dense_layers o_groups num_mem_blocks num_mtp_layers",
    ),
}
"""The value of every field that has a size, by its name."""

REACH: dict[str, Any] = {
    **_named(4, "sliding_window sliding_window_size local_attention window_size attention_window_size"),
    **_named(8, "attention_chunk_size chunk_size mamba_chunk_size block_size"),
    "use_sliding_window": True,
}
"""Windows and chunks that are shorter than the sequences of the tests."""

FACTORS: dict[str, Any] = {
    **_named(0.25, "logit_scale lm_head_multiplier logits_mup_width_multiplier"),
    **_named(4.0, "logits_scaling final_logit_softcapping logits_soft_cap output_logit_soft_cap"),
    **_named(3.0, "attn_logit_softcapping"),
    **_named(2.0, "embedding_multiplier scale_emb"),
    **_named(0.5, "residual_multiplier"),
    **_named(0.3, "attention_multiplier"),
}
"""Factors and caps, none of which is without effect."""

TOKENS: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **_named(3, "decoder_start_token_id sep_token_id"),
    **{
        name: 82 + index
        for index, name in enumerate(
            "image_token_id image_token_index video_token_id video_token_index audio_token_id audio_token_index "
            "vision_start_token_id vision_end_token_id boi_token_id eoi_token_id boa_token_id eoa_token_id "
            "boi_token_index eoi_token_index".split()
        )
    },
}
"""Special tokens, all of them in the vocabulary and none among `WORDS`."""

TEXT = {**SIZES, **REACH, **FACTORS, **TOKENS}
TOWER = {name: value for name, value in SIZES.items() if name != "vocab_size"} | {
    "image_size": 28,
    "patch_size": 14,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_key_value_heads": 4,
}
"""Fields of the part of a model that sees or hears; it takes no part in the tests."""

TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder", "thinker_config")


def tiny_config(model_type: str, **special: Any) -> Any:
    """Return a small config of this type, in which `special` wins over the tables.

    A dict goes to the sub-config of that name, and `...` stands for the default of the config class.
    """
    return AutoConfig.for_model(model_type, **_fields(CONFIG_MAPPING[model_type], TEXT, special))


def _fields(config_class: Any, table: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config class that the table or `special` name; sub-configs are dicts."""
    names = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    own = {name: value for name, value in table.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention has keys and values of its own in each head
        own["num_key_value_heads"] = own["num_attention_heads"]
    if {"layer_types", "sliding_window"} <= names and table is TEXT:
        own["layer_types"] = ["sliding_attention", "full_attention"]
    own |= {name: value for name, value in special.items() if not isinstance(value, dict) or name not in names}
    own = {name: value for name, value in own.items() if value is not ...}
    for name, part in _parts(config_class).items():
        if special.get(name, ...) is None:
            continue
        inner = special.get(name, {})
        fields = _fields(part, TEXT if name in TEXT_PARTS else TOWER, inner)
        own[name] = {"model_type": part.model_type, **fields} if part.model_type else fields
    plain = [name for name, value in special.items() if isinstance(value, dict) and name not in own]
    return own | {name: special[name] for name in plain}


def _parts(config_class: Any) -> dict[str, Any]:
    """Return the class of each sub-config; one that may be of several types is of the type of the default config."""
    kinds = dict(config_class.sub_configs)
    if any(kind is AutoConfig for kind in kinds.values()):
        default = config_class()
        kinds = {name: type(getattr(default, name)) for name in kinds if getattr(default, name, None) is not None}
    return {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}
