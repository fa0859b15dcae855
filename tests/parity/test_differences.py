"""The numbers in which raydpo deliberately differs from TRL, with the meaning of each side and the reason."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.config import LossConfig
from raydpo.objectives.objective import pair_losses
from raydpo.objectives.pairs import PairLogps
from tests.parity.sides import BETA, ROWS, Sides
from tests.parity.trl_side import needs_trl

pytestmark = [needs_trl, pytest.mark.usefixtures("ray_local")]

ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
"""Options for the same global batches with one pair per forward."""


@pytest.mark.parametrize("name", ["aot", "sft"])
def test_trl_computes_losses_that_couple_pairs_per_micro_batch(name: str, sides: Sides) -> None:
    """In TRL, memory settings thus change the loss; in raydpo they do not (see tests/training/test_global_batch.py)."""
    large, small = sides.trl_log(name)[0], sides.trl_log(name, **ONE_BY_ONE)[0]
    assert small["loss"] != pytest.approx(large["loss"], rel=1e-3)


def test_trl_aot_with_one_pair_per_micro_batch_equals_sigmoid(sides: Sides) -> None:
    """With one pair per micro-batch TRL has nothing to sort, so its aot is the sigmoid loss."""
    for aot, sigmoid in zip(sides.trl_log("aot", **ONE_BY_ONE), sides.trl_log("sigmoid", **ONE_BY_ONE), strict=True):
        assert aot == pytest.approx(sigmoid, rel=1e-4, abs=1e-5)


def test_evaluation_metrics_do_not_depend_on_the_batch_size(sides: Sides) -> None:
    """TRL averages batch means, so a small last batch weighs as much as the others; raydpo averages over samples."""

    def trl_evaluations(batch: int) -> list[dict[str, Any]]:
        changes = {"eval_strategy": "epoch", "eval_on_start": True, "max_steps": 1}
        history = sides.trl_log("sigmoid", per_device_eval_batch_size=batch, **changes)
        excluded = ("runtime", "per_second", "num_tokens")  # TRL's num_tokens counts training tokens
        return [
            {key: value for key, value in entry.items() if not key.endswith(excluded)}
            for entry in history
            if "eval_loss" in entry
        ]

    def names(entries: list[dict[str, Any]], *kinds: str) -> set[str]:
        return {key for key in entries[0] if key.removeprefix("eval_").split("/")[0] in kinds}

    run = sides.raydpo_run("sigmoid", eval_strategy="epoch", per_device_eval_batch_size=4, max_steps=1)
    evaluations = [line for line in run.all_lines() if "eval_loss" in line]
    one_batch = trl_evaluations(5)
    assert len(evaluations) == len(one_batch) == 2
    pairwise, tokenwise = (
        names(one_batch, "loss", "rewards", "logps"),
        names(one_batch, "entropy", "logits", "mean_token_accuracy"),
    )
    assert (len(pairwise), len(tokenwise)) == (7, 4)
    for line, trl in zip(evaluations, one_batch, strict=True):
        for key in trl:
            assert line[key] == pytest.approx(trl[key], rel=1e-4, abs=1e-5), key
    # With one pair per batch, batches weigh the same as pairs; but tokens of short completions weigh more.
    for trl, exact in zip(trl_evaluations(1), one_batch, strict=True):
        assert {key: trl[key] for key in pairwise} == pytest.approx({key: exact[key] for key in pairwise}, abs=1e-4)
        assert any(trl[key] != pytest.approx(exact[key], rel=1e-3) for key in tokenwise)
    for trl, exact in zip(trl_evaluations(4), one_batch, strict=True):
        assert trl["eval_loss"] == pytest.approx(exact["eval_loss"], rel=1e-4)  # transformers averages eval_loss itself
        assert trl["eval_rewards/margins"] != pytest.approx(exact["eval_rewards/margins"], rel=0.1)


def test_label_smoothing_applies_to_sigmoid(sides: Sides) -> None:
    """Conservative DPO, -(1 - e) log s(x) - e log s(-x): TRL 0.x had it; 1.16 accepts the option and ignores it."""
    plain, smoothed = sides.trl_log("sigmoid"), sides.trl_log("sigmoid", label_smoothing=0.2)
    assert smoothed == plain
    x, ones = torch.tensor([-0.7, 0.1, 2.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    zeros = 0 * ones
    pairs = PairLogps(x / BETA, zeros, zeros, zeros, ones, ones, zeros, ones, ones, ones, zeros, mean_nll_tokens=1.0)
    config = LossConfig(loss_type=("sigmoid",), beta=BETA, label_smoothing=0.2)
    expected = 0.8 * torch.log1p(torch.exp(-x)) + 0.2 * torch.log1p(torch.exp(x))
    torch.testing.assert_close(pair_losses(pairs, config), expected, rtol=1e-12, atol=0)


def first_logits(sides: Sides) -> tuple[Tensor, Tensor, Tensor]:
    """Return (logits, text, predictors) of the policy on the first global batch, each [8, T].

    `logits` are means over the vocabulary; `text` masks the tokens that are not padding; `predictors` masks the
    positions that predict the completions.
    """
    tokenizer = AutoTokenizer.from_pretrained(sides.policy)
    model = AutoModelForCausalLM.from_pretrained(sides.policy)
    texts = [(row["prompt"], f"{row[side]}<eos>") for side in ("chosen", "rejected") for row in ROWS[:4]]
    batch = tokenizer(["".join(text) for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.mean(dim=-1)
    predictors = batch["attention_mask"].clone()
    for row, (prompt, completion) in enumerate(texts):
        length = len(tokenizer(prompt)["input_ids"])
        predictors[row, : length - 1] = 0
        predictors[row, length - 1 + len(tokenizer(completion)["input_ids"]) :] = 0
    return logits, batch["attention_mask"].bool(), predictors.bool()


@pytest.mark.parametrize(("name", "positions"), [("orpo", slice(None, -1)), ("simpo", slice(None))])
def test_mean_logits_of_orpo_and_cpo_cover_completions_only(name: str, positions: slice, sides: Sides) -> None:
    """TRL's ORPO and CPO average over prompts and padding too, so the longest row of a batch changes the number.

    In raydpo, as in TRL's DPO, logits/* covers the positions that predict the completions.
    """
    logits, text, predictors = first_logits(sides)
    assert not text.all(), "the batch must have padding, or the two sides would hardly differ"
    raydpo_line, trl_entry = sides.raydpo_run(name).lines[0], sides.trl_log(name)[0]
    for side, rows_of_side in (("chosen", slice(4)), ("rejected", slice(4, 8))):
        assert trl_entry[f"logits/{side}"] == pytest.approx(logits[rows_of_side, positions].mean().item(), rel=1e-4)
        assert raydpo_line[f"logits/{side}"] == pytest.approx(
            logits[rows_of_side][predictors[rows_of_side]].mean().item(), rel=1e-4
        )


def test_nll_loss_is_not_logged_when_it_is_not_trained_on(sides: Sides) -> None:
    """With cpo_alpha=0 TRL logs nll_loss=0, which is not the NLL; raydpo leaves the metric out."""
    assert {entry["nll_loss"] for entry in sides.trl_log("simpo")} == {0.0}
    assert not any("nll_loss" in line for line in sides.raydpo_run("simpo").lines)
