"""Tiny vision-language models of several families, with random weights, and what their image processors would give."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

IMAGE = 60
"""The id at whose positions a model puts the features of an image."""
VOCABULARY = 64
SIDE, PATCH = 16, 4
"""Sides of an image and of a patch, in pixels."""

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
QWEN2_TOWER: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN2_5_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
QWEN3_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
GLM_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
SELECT: dict[str, Any] = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
CLIP = {"model_type": "clip_vision_model", **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": CLIP, **SELECT},
    "llava_next": {
        "text_config": {"model_type": "mistral", **TEXT, "sliding_window": None},
        "vision_config": CLIP,
        "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
        **SELECT,
    },
    "qwen2_vl": {"text_config": {**TEXT, **MROPE}, "vision_config": QWEN2_TOWER},
    "qwen2_5_vl": {"text_config": {**TEXT, **MROPE}, "vision_config": QWEN2_5_TOWER},
    "qwen3_vl": {
        "text_config": {**TEXT, **MROPE},
        "vision_config": QWEN3_TOWER,
    },
    "gemma3": {
        "text_config": {
            **TEXT,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
    },
    "idefics3": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": TOWER, "scale_factor": 2},
    "smolvlm": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": TOWER, "scale_factor": 2},
    "mistral3": {
        "text_config": {"model_type": "mistral", **TEXT, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {**TOWER, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        "downsample_ratio": 0.5,
        "image_seq_length": 4,
        **SELECT,
    },
    "glm4v": {
        "text_config": {**TEXT, **MROPE},
        "vision_config": GLM_TOWER,
    },
    "paligemma": {
        "text_config": {"model_type": "gemma", **TEXT},
        "vision_config": SIGLIP,
        "projection_dim": 32,
    },
    "lfm2_vl": {
        "text_config": {"model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"]},
        "vision_config": {
            "model_type": "siglip2_vision_model",
            **TOWER,
            "num_patches": 16,
        },
        "downsample_factor": 2,
        "projector_hidden_size": 16,
    },
    "mllama": {
        "text_config": {**TEXT, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
        },
    },
    "llama4": {
        "text_config": {**TEXT, "intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 2},
        "vision_config": {
            **TOWER,
            "intermediate_size": 64,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    },
    "qwen3_5": {
        "text_config": {
            **TEXT,
            **MROPE,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
        },
        "vision_config": {key: value for key, value in QWEN3_TOWER.items() if key != "deepstack_visual_indexes"},
    },
}


def vision_config(family: str, *, vocabulary: int = VOCABULARY, image: int = IMAGE, **overrides: Any) -> Any:
    """Return the config of a tiny model; `image` is the id at whose positions it puts the features of images."""
    options = {"image_token_id": image, "image_token_index": image, **FAMILIES[family], **overrides}
    options["text_config"] = {**options["text_config"], "vocab_size": vocabulary}
    if family in ("llava", "llava_next", "paligemma", "mistral3", "mllama"):
        del options["image_token_id"]
    else:
        del options["image_token_index"]
    return AutoConfig.for_model(family, **options)


def vision_model(family: str, **overrides: Any) -> Any:
    """Return a tiny model whose weights are so large that each token's state depends on all that it sees."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(vision_config(family, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 if parameter.dim() > 1 else torch.rand_like(parameter))
    return model
