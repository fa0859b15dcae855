"""The plan of a run with an encoder-decoder: what it takes from the model, and the options that it refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from raydpo.data.seq2seq import Seq2SeqText, Seq2SeqTruncation
from raydpo.errors import ConfigError
from raydpo.stages.feeds import train_feed_spec
from raydpo.stages.plan import RunPlan, plan_run
from raydpo.stages.tokenize import tokenization_request
from tests.data.seq2seq_tokenizers import T5, build_seq2seq_tokenizer
from tests.models.seq2seq_models import CORE, build
from tests.stages.plan_helpers import CPU_NODE, job_of


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    build(CORE["t5"]()).save_pretrained(folder)
    build_seq2seq_tokenizer(T5).save_pretrained(folder)
    return folder


def plan_of(model: Path, folder: Path, **options: Any) -> RunPlan:
    return plan_run(job_of(model, folder, **options), [CPU_NODE])


@pytest.mark.parametrize("said", [None, True])
def test_a_model_says_itself_that_it_is_an_encoder_decoder(t5: Path, tmp_path: Path, said: bool | None) -> None:
    plan = plan_of(t5, tmp_path, is_encoder_decoder=said)
    assert plan.seq2seq == Seq2SeqText(decoder_start=0)
    assert "the encoder reads each prompt once" in plan.policy.summary_line
    recipe = tokenization_request(plan, tmp_path).recipe
    assert recipe.seq2seq == plan.seq2seq
    assert recipe.images is None, "rows with images go to quarantine"


def test_max_length_limits_prompt_and_completion_each(t5: Path, tmp_path: Path, tiny_model: Path) -> None:
    def limits(**options: Any) -> Any:
        return tokenization_request(plan_of(t5, tmp_path, **options), tmp_path).recipe.truncation

    assert limits() == Seq2SeqTruncation(1024, 1024)
    assert limits(max_length=None, max_completion_length=9) == Seq2SeqTruncation(None, 9)
    both = {"max_prompt_length": 2048, "is_encoder_decoder": True, "truncation_mode": "keep_end"}
    assert limits(**both) == Seq2SeqTruncation(2048, 1024, "keep_end")
    with pytest.raises(ConfigError, match="is_encoder_decoder=true"):
        limits(max_prompt_length=2048)
    with pytest.raises(ConfigError, match=r"max_completion_length=9 .* use max_length"):
        plan_of(tiny_model, tmp_path, max_completion_length=9)


def test_orpo_counts_the_likelihood_of_completions_alone(t5: Path, tmp_path: Path, tiny_model: Path) -> None:
    specs = [train_feed_spec(plan_of(model, tmp_path, loss_type="orpo")) for model in (t5, tiny_model)]
    assert [spec.with_prompts for spec in specs] == [False, True]


def test_options_that_contradict_the_model_are_refused(t5: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"is_encoder_decoder=false contradicts .*\(t5\).* leave it out"):
        plan_of(t5, tmp_path, is_encoder_decoder=False)
    with pytest.raises(ConfigError, match=r"is_encoder_decoder=true contradicts .*\(llama\)"):
        plan_of(tiny_model, tmp_path, is_encoder_decoder=True)
    with pytest.raises(ConfigError, match=r"loss_on=assistant .*leave it out"):
        plan_of(t5, tmp_path, loss_on="assistant")
    with pytest.raises(ConfigError, match=r"reference_model=.*choose two of one kind"):
        plan_of(t5, tmp_path, reference_model=str(tiny_model))
    assert dataclasses.asdict(plan_of(tiny_model, tmp_path))["seq2seq"] is None
