"""Options that do not fit the model are refused by the plan, before a worker loads anything."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoTokenizer,
    CTRLConfig,
    CTRLLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from raydpo.blocks import schema
from raydpo.blocks.schema import Block
from raydpo.errors import ConfigError, DataError, ModelError
from raydpo.runtime import storage
from raydpo.stages.model_checks import Vocabulary, check_reference_tokenizer
from raydpo.stages.plan import plan_run
from raydpo.stages.token_ids import check_lengths, check_token_ids
from tests.stages.plan_helpers import CPU_NODE, job_of

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def save(model: PreTrainedModel, tokenizer_of: Path, folder: Path) -> Path:
    """Write a model's folder with the tokenizer of another one."""
    model.save_pretrained(folder)
    for path in [*tokenizer_of.glob("tokenizer*"), *tokenizer_of.glob("*.jinja")]:
        shutil.copy(path, folder)
    return folder


def llama(vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SHAPE))


def experts(**options: Any) -> Qwen3MoeForCausalLM:
    shape = {**SHAPE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=260, **shape, **options))


def plan(model: Path, folder: Path, **options: Any) -> Any:
    return plan_run(job_of(model, folder, **options), [CPU_NODE])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fp16": True}, ConfigError, r"fp16=true needs GPUs.*bf16=true"),
        ({"dtype": "float16"}, ConfigError, r"dtype=float16 needs GPUs"),
        ({"attn_implementation": "sdpaa"}, ModelError, r"attn_implementation=sdpaa does not work.*leave it out"),
        ({"use_peft": True, "lora_target_modules": "query"}, ModelError, r"query matches no module.*q_proj"),
        ({"use_peft": True, "lora_target_modules": "mlp"}, ModelError, r"cannot be added to mlp.*down_proj"),
        ({"use_peft": True, "lora_target_modules": "lm_head"}, ModelError, r"lm_head is the output embedding"),
        ({"use_peft": True, "lora_modules_to_save": "embed"}, ModelError, r"embed matches no module"),
    ],
)
def test_options_that_the_model_does_not_fit_are_refused(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(tiny_model, tmp_path, **options)


def test_a_class_without_checkpointing_or_layers_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = CTRLConfig(vocab_size=260, n_positions=64, n_embd=16, dff=16, n_layer=1, n_head=2)
    model = save(CTRLLMHeadModel(config), tiny_model, tmp_path / "ctrl")
    plan(model, tmp_path)
    with pytest.raises(ModelError, match=r"CTRLLMHeadModel does not support gradient checkpointing"):
        plan(model, tmp_path, gradient_checkpointing=True)
    with pytest.raises(ModelError, match=r"CTRLLMHeadModel has no layers that torch_compile"):
        plan(model, tmp_path, torch_compile=True)


def test_a_router_loss_needs_a_layer_with_experts(tiny_model: Path, tmp_path: Path) -> None:
    sparse = save(experts(), tiny_model, tmp_path / "sparse")
    plan(sparse, tmp_path, router_aux_loss_coef=0.1, use_peft=True, disable_dropout=True, lora_dropout=0)
    for name, options in (("dense", {"mlp_only_layers": [0, 1]}), ("step", {"decoder_sparse_step": 3})):
        dense = save(experts(**options), tiny_model, tmp_path / name)
        plan(dense, tmp_path)
        with pytest.raises(ModelError, match=r"router_aux_loss_coef=0\.1 requires a layer .*leave it out"):
            plan(dense, tmp_path, router_aux_loss_coef=0.1)


def test_a_model_without_a_row_for_the_end_of_a_sequence_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = save(llama(260), tiny_model, tmp_path / "model")
    path = model / "tokenizer_config.json"
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(model)
    assert json.loads(path.read_text())["eos_token"] == "<|im_end|>"
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' has the id 260.*below 260.*resize_token_embeddings\(261\)"):
        plan(model, tmp_path)


def test_weights_whose_embedding_is_not_that_of_the_config_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = save(llama(264), tiny_model, tmp_path / "model")
    assert [found.inputs for found in plan(model, tmp_path).vocabularies] == [264]
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    with pytest.raises(ModelError, match=r"has 264 rows in its weight files, and 300 by its config.*vocab_size=264"):
        plan(model, tmp_path)


def test_a_model_that_cannot_be_built_without_weights_is_left_to_the_workers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LlamaForCausalLM, config: LlamaConfig) -> None:
        raise AssertionError("no meta device")

    monkeypatch.setattr(LlamaForCausalLM, "__init__", broken)
    found = plan(tiny_model, tmp_path, use_peft=True, lora_target_modules="query").vocabularies
    assert [one.inputs for one in found] == [260], "from the header of the weights"


def test_sequences_longer_than_learned_positions_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=260, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    found = plan(save(GPT2LMHeadModel(config), tiny_model, tmp_path / "gpt2"), tmp_path).vocabularies
    check_lengths(32, found)
    with pytest.raises(DataError, match=r"has 33 tokens.* 32 positions; set max_length=32"):
        check_lengths(33, found)
    check_lengths(10**6, plan(tiny_model, tmp_path).vocabularies)  # computed positions have no such limit


def test_what_a_deepspeed_file_sets_is_checked_too(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    for content, options, message in (
        ({"fp16": {"enabled": True}}, {}, "fp16=true needs GPUs"),
        (
            {"zero_optimization": {"stage": 3}},
            {"torch_compile": True},
            "torch_compile=true does not work with zero_stage=3",
        ),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            plan(tiny_model, tmp_path, deepspeed=str(path), **options)


def block(folder: Path, prompt: list[int], chosen: list[int]) -> Block:
    """Write a block of one pair."""
    row = {
        schema.PAIR_ID: "pairs.jsonl:7",
        schema.PROMPT_IDS: prompt,
        schema.CHOSEN_IDS: chosen,
        schema.REJECTED_IDS: [3, 0],
    }
    url = str(folder / "block.parquet")
    storage.write_table(url, schema.pa.Table.from_pylist([row], schema=schema.TOKENIZED_SCHEMA))
    return Block("content", "pairs.jsonl", 0, 1, 10, url)


def test_a_token_id_counts_where_a_row_has_it(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # with the id 260, and the model has 260 rows
    vocabularies = plan(tiny_model, tmp_path).vocabularies
    assert [(found.inputs, found.outputs) for found in vocabularies] == [(260, 260)]
    with caplog.at_level(logging.WARNING):
        check_token_ids([block(tmp_path, [5, 9], [7, 0])], tokenizer, vocabularies)
    assert "no row of the data has such an id" in caplog.text
    for prompt, chosen, what in (([5, 260], [7, 0], "an embedding of"), ([5, 9], [260, 0], "an embedding of")):
        with pytest.raises(
            DataError, match=rf"row pairs\.jsonl:7 has the token '\[PAD\]' with id 260.*{what} 260 rows"
        ):
            check_token_ids([block(tmp_path, prompt, chosen)], tokenizer, vocabularies)
    # A model may read tokens that it does not predict, such as the placeholder of an image.
    reads_more = (Vocabulary("model", inputs=261, outputs=260),)
    check_token_ids([block(tmp_path, [5, 260], [7, 0])], tokenizer, reads_more)
    with pytest.raises(DataError, match=r"'model' predicts 260 rows"):
        check_token_ids([block(tmp_path, [5, 9], [260, 0])], tokenizer, reads_more)


def test_a_reference_of_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    llama(200).save_pretrained(small)
    found = plan(tiny_model, tmp_path, reference_model=str(small)).vocabularies
    assert [one.inputs for one in found] == [260, 200]

    other = save(llama(260), tiny_model, tmp_path / "other")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"reads 2 token ids as other tokens .*the policy's tokenizer"):
        plan(tiny_model, tmp_path, reference_model=str(other))


def test_a_reference_may_name_special_tokens_differently(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save(llama(260), tiny_model, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((other / name).read_text().replace("<user>", "<reserved>"))
    plan_of_other = plan(tiny_model, tmp_path, reference_model=str(other))
    with caplog.at_level(logging.WARNING):
        check_reference_tokenizer(plan_of_other.tokenizer, plan_of_other.reference, trust=False)
    assert "names 1 special tokens differently, first 2: '<reserved>', and '<user>'" in caplog.text
