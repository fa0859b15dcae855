"""Small base models of several architectures, as Hugging Face folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

IDS = torch.tensor([[5, 9, 42, 17, 60, 3, 8]])
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ARCHITECTURES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, attention_dropout=0.1)),
    "llama-deep": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE | {"num_hidden_layers": 11})
    ),  # layers 2 and 10 in numerical order
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=3)),
}


def make_base(folder: Path, tiny_model: Path, architecture: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a complete model folder with tokenizer, chat template and generation config, and return it."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]().to(dtype)
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.7)
    model.save_pretrained(folder)
    for path in [*tiny_model.glob("tokenizer*"), *tiny_model.glob("*.jinja")]:
        shutil.copy(path, folder)
    return folder


def add_custom_code(folder: Path) -> None:
    """Make a Llama's folder that of a model whose classes are in a Python file of its own (trust_remote_code)."""
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
