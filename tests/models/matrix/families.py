"""What a tiny model of a family needs beside the tables of `configs`, and the families' variants."""

from typing import Any

LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64}
GEMMA3N = {
    "num_kv_shared_layers": 0,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0, 0.0],
    "intermediate_size": [48, 48],
}
GEMMA4 = {"num_kv_shared_layers": 0}
LLAMA4 = {
    "interleave_moe_layer_step": 1,
    "no_rope_layers": [1, 0],
    "layer_types": ["chunked_attention", "full_attention"],
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
HALF_MROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    }
}
PLACEHOLDERS = {"<image>": 82, **{f"IMGIMG{letter}Z": 83 + index for index, letter in enumerate("ABCD")}}
QUANTIZER = {
    "num_embeddings": 4,
    "codebook_size": 4,
    "embed_dim": 8,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1],
}
DOTS3_NOTE = {
    "num_key_value_heads": 4,
    "layer_types": ["indexed_attention", "sliding_attention"],
    "head_dim": 24,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 8,
}
COMPASS = {
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
    }
}
QWEN4 = {
    **LINEAR,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ple_embed_dim": None,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 200,
    "split_ngram_parts": 2,
}
OMNI = {"vision_start_token_id": 88, "audio_start_token_id": 90}
"""Tokens that the config class of an omni model's thinker does not know, and its checkpoints name."""
GLIMMER = {
    "projector_hidden_size": 32,
    "out_hidden_size": 128,
    "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16},
}
SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "downsample_channels": [8, 32],
    "global_attn_indexes": [0],
    "window_size": 2,
}
WITH_IMAGES: dict[str, dict[str, Any]] = {
    "cosmos3_edge": {"text_config": MROPE, "projector_hidden_size": 32},
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": SAM,
            "encoder_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 96,
            },
        },
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "head_dim": ...},
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [16, 16],
            "mlp_layer_types": ["dense", "sparse"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        }
    },
    "glm5_next": {
        "text_config": {
            "index_topk": 8,
            "index_kpool": 4,
            "qk_rope_head_dim": 0,
            "layer_types": ["linear_attention", "indexed_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "indexer_types": ["full", "full"],
        }
    },
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [1],
        "vision_config": {"hidden_size": 64},
        "qformer_config": {
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "intermediate_size": 32,
            "num_attention_heads": 1,
        },
    },
    "hunyuan_vl": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
        },
        "vision_config": {"img_max_token_num": 64, "max_image_size": 64, "max_vit_seq_len": 64, "min_image_size": 28},
        "im_start_id": 90,
        "im_end_id": 91,
        "im_newline_id": 92,
    },
    "molmo2": {
        "text_config": {"additional_vocab_size": 4},
        "vision_config": {"image_size": [28, 28]},
        "adapter_config": {
            "vision_feature_layer": [-1],
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "intermediate_size": 32,
            "text_hidden_size": 32,
        },
        "image_patch_id": 82,
    },
    "muse_glimmer": GLIMMER,
    "muse_spark": {
        **GLIMMER,
        "text_config": {"moe_hidden_size": 16, "mlp_layer_types": ["dense", "sparse"]},
        "audio_config": {
            "patch_sizes": [4],
            "hidden_sizes": [16],
            "depths": [1],
            "num_hidden_layers": 1,
            "out_hidden_size": 32,
        },
    },
    "unlimited_ocr": {"text_config": {"layer_types": ["full_attention", "full_attention"]}},
    "qwen2_5_omni_thinker": {"text_config": MROPE, **OMNI},
    "qwen3_omni_moe_thinker": OMNI,
}
"""Families with images whose configs need more than a text model's settings."""
SPECIAL: dict[str, dict[str, Any]] = {
    **WITH_IMAGES,
    "cohere_compass_text": COMPASS,
    "cohere_compass": {"text_config": COMPASS},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "chameleon": {"vocabulary_map": PLACEHOLDERS, "vq_config": QUANTIZER},
    "emu3": {"vocabulary_map": PLACEHOLDERS, "vq_config": QUANTIZER},
    "janus": {"vq_config": QUANTIZER},
    "deepseek_v2": {"topk_method": "greedy"},
    "deepseek_v4": {"layer_types": ...},
    "dots3_note": {
        "text_config": DOTS3_NOTE,
        "vision_config": {"mlp_layer_types": ["dense"], "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": DOTS3_NOTE,
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "falcon_h1": MAMBA,
    "gemma3n_text": GEMMA3N,
    "gemma3n": {"text_config": GEMMA3N},
    "gemma4_text": GEMMA4,
    "gemma4": {"text_config": GEMMA4},
    "gemma4_unified_text": GEMMA4,
    "gemma4_unified": {
        "text_config": GEMMA4,
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 32},
        "audio_config": {"audio_embed_dim": 32},
    },
    "gemma4_assistant": {"text_config": {**GEMMA4, "hidden_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "position_embedding_type": "rope"},
    "kimi_linear": LINEAR,
    "lfm2": {**CONVOLUTION, "full_attn_idxs": [1]},
    "lfm2_moe": CONVOLUTION,
    "llama4_text": LLAMA4,
    "llama4": {
        "text_config": LLAMA4,
        "vision_config": {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "longcat_flash": {"num_layers": 1, "zero_expert_num": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "minicpm3": {"dim_model_base": 8},
    "minimax": {**LINEAR, "num_local_experts": 4},
    "mpt": {"n_heads": 4},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "layer_types": ...,
    },
    "olmo_hybrid": LINEAR,
    "opt": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "qwen3_5": {"text_config": LINEAR},
    "qwen3_5_moe": {"text_config": LINEAR},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "layer_types": ...,
        "head_dim": ...,
        "num_key_value_heads": 1,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "hash_seed": 0,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 96,
        "shape_vocab_size": 96,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"qk_dim_factor": 0.5},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "use_mamba_kernels": False,
        "layer_types": ...,
        "attention_hidden_size": 64,
        "head_dim": ...,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "n_mamba_heads": 4, "mamba_headdim": 16},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid_sliding", "hybrid"]},
    **{name: {"text_config": HALF_MROPE} for name in "glm46v glm4v glm4v_moe glm_ocr glmga".split()},
    **{name: {"text_config": MROPE} for name in "paddleocr_vl qwen2_vl qwen2_5_vl".split()},
}
"""Settings by model type, which win over the tables."""

DECODERS_OF_ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
).split()
for _name in DECODERS_OF_ENCODERS:
    SPECIAL[_name] = {**SPECIAL.get(_name, {}), "is_decoder": True}
DECODERS_OF_PAIRS = (
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper"
).split()
for _name in DECODERS_OF_PAIRS:
    SPECIAL[_name] = {**SPECIAL.get(_name, {}), "is_decoder": True, "is_encoder_decoder": False}


CORE = frozenset(
    """
    bert bloom cohere2 deepseek_v3 falcon_h1 gemma2 gemma3_text gemma4_text gpt2 gpt_neox gpt_oss granitemoehybrid
    jamba llama llama4_text lfm2 mamba2 mistral mixtral mpt olmo2 opt phi3 qwen3 qwen3_next
    """.split()
)
"""The 25 families that `make test` runs."""
ADAPTED = """
    bart gemma2 gemma3n_text gpt2 inkling2_text jamba laguna llama llama4_text longcat_flash mamba2 mistral
    mistral_large4 olmo2 phi3 phimoe qwen3 zamba
    """.split()
"""Families whose adapters are compared: plain ones, and those with layers on which an adapter would be wrong."""
ADAPTED_CORE = frozenset({"laguna", "zamba"})
"""Those of them that `make test` runs: adapters would be lost in the former, and merged wrongly in the latter."""

_ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_YARN = {**_ROPE, "rope_type": "yarn"}
_SHORT = {"layer_types": ["sliding_attention", "sliding_attention"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama@linear": {"rope_parameters": {**_ROPE, "rope_type": "linear"}},
    "llama@yarn": {"rope_parameters": _YARN},
    "llama@llama3": {
        "rope_parameters": {**_ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    },
    "llama@tied": {"tie_word_embeddings": True},
    "llama@biases": {"attention_bias": True, "mlp_bias": True},
    "gpt2@no scale": {"scale_attn_weights": False},
    "gpt2@scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "gpt_bigcode@heads": {"multi_query": False},
    "gpt_neox@serial": {"use_parallel_residual": False},
    "falcon@alibi": {"alibi": True},
    "falcon@new": {"new_decoder_architecture": True, "alibi": False},
    "opt@norm before": {"word_embed_proj_dim": 32, "do_layer_norm_before": True},
    "mpt@no scale": {"logit_scale": None},
    "mpt@no alibi": {"attn_config": {"alibi": False}},
    "mpt@clipped": {"attn_config": {"clip_qkv": 0.5, "qk_ln": True}},
    "phi@norms": {"qk_layernorm": True},
    "olmo@clipped": {"clip_qkv": 0.5},
    "olmoe@clipped": {"clip_qkv": 0.5},
    "stablelm@parallel": {"use_parallel_residual": True, "qk_layernorm": True},
    "gemma2@windows": _SHORT,
    "gemma2@untied": {"tie_word_embeddings": False},
    "gemma3_text@pattern": {"layer_types": ..., "sliding_window_pattern": 2},
    "gemma4_text@experts": {"enable_moe_block": True},
    "gemma4_text@shared keys": {
        "num_kv_shared_layers": 1,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "cohere2@pattern": {"layer_types": ..., "sliding_window_pattern": 2},
    "deepseek_v2@whole queries": {"q_lora_rank": None},
    "deepseek_v3@whole queries": {"q_lora_rank": None},
    "deepseek_v3@yarn": {"rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "ministral3@yarn": {"sliding_window": None, "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.5}},
    "gpt_oss@yarn": {"rope_parameters": {**_YARN, "truncate": False}},
    "gpt_oss@windows": _SHORT,
    "qwen2_moe@windows": {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True},
    "qwen3_moe@dense": {"mlp_only_layers": [0, 1]},
    "qwen3_moe@one dense": {"mlp_only_layers": [0]},
    "phi3@longrope": {
        "sliding_window": None,
        "max_position_embeddings": 104,
        "original_max_position_embeddings": 26,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 26,
            "factor": 4.0,
        },
    },
    "llama@dynamic": {"max_position_embeddings": 26, "rope_parameters": {**_ROPE, "rope_type": "dynamic"}},
    "phimoe@biases": {"lm_head_bias": True, "attention_bias": True},
    "phimoe@noise": {"input_jitter_noise": 0.1},
    "mixtral@noise": {"router_jitter_noise": 0.1},
    "granitemoehybrid@attention": {"layer_types": ["attention", "attention"], "position_embedding_type": "nope"},
    "falcon_h1@default": {name: ... for name in ("lm_head_multiplier", "embedding_multiplier")},
    "doge@experts": {"is_moe": True},
    "gemma@two ways": {"use_bidirectional_attention": True},
    "bert@encoder": {"is_decoder": False},
    "roberta@encoder": {"is_decoder": False},
}
"""Other settings of a family, as `type@name`."""
