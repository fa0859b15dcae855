"""Fixtures shared by all tests (one Ray instance, a tiny model), and the marker `ray` of the tests that need Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Processes that run in parallel have more threads than cores: a thread that spins while it waits blocks another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Interval at which Ray Train polls its workers: at the default of 2 s, tiny runs spend most of their time waiting
# until Ray Train notices that they have saved or ended.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# The watcher for a cloud's notice that a node will be preempted is one actor per run, which has to import Ray Train.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses the shared Ray instance with `ray`, so that `-m "not ray"` deselects it."""
    for item in items:
        if "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start one Ray instance for the whole session."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Hugging Face folder of a random two-layer Llama with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<pad>", "<user>", "<assistant>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}<eos>"
        "{% else %}<user>{{ message['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def single_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make this process the only rank of a process group."""
    import torch

    group = tmp_path_factory.mktemp("group") / "group"
    torch.distributed.init_process_group("gloo", init_method=f"file://{group}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
