"""Where our numbers are not TRL's: what each side means, and why ours is the one to have."""

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
"""The same global batches, a pair a forward."""


@pytest.mark.parametrize("name", ["aot", "sft"])
def test_a_loss_that_couples_pairs_is_that_of_a_micro_batch_in_trl(name: str, sides: Sides) -> None:
    """So that memory settings change what is trained. Here they do not: tests/training/test_global_batch.py."""
    whole, cut = sides.theirs(name)[0], sides.theirs(name, **ONE_BY_ONE)[0]
    assert cut["loss"] != pytest.approx(whole["loss"], rel=1e-3)


def test_aot_of_trl_without_a_batch_to_sort_is_dpo(sides: Sides) -> None:
    """A pair a micro-batch, and nothing is transported: what TRL calls aot there is sigmoid."""
    for aot, sigmoid in zip(sides.theirs("aot", **ONE_BY_ONE), sides.theirs("sigmoid", **ONE_BY_ONE), strict=True):
        assert aot == pytest.approx(sigmoid, rel=1e-4, abs=1e-5)


def test_held_out_metrics_do_not_depend_on_the_batch(sides: Sides) -> None:
    """TRL's are means of batch means, so that a last small batch weighs as much as the others; ours are of samples."""

    def theirs(batch: int) -> list[dict[str, Any]]:
        changes = {"eval_strategy": "epoch", "eval_on_start": True, "max_steps": 1}
        history = sides.theirs("sigmoid", per_device_eval_batch_size=batch, **changes)
        timeless = ("runtime", "per_second", "num_tokens")  # and TRL's count of tokens is that of training
        return [
            {key: value for key, value in entry.items() if not key.endswith(timeless)}
            for entry in history
            if "eval_loss" in entry
        ]

    def names(entries: list[dict[str, Any]], *kinds: str) -> set[str]:
        return {key for key in entries[0] if key.removeprefix("eval_").split("/")[0] in kinds}

    run = sides.ours("sigmoid", eval_strategy="epoch", per_device_eval_batch_size=4, max_steps=1)
    ours = [line for line in run.every_line() if "eval_loss" in line]
    in_one = theirs(5)
    assert len(ours) == len(in_one) == 2
    pairwise, tokenwise = (
        names(in_one, "loss", "rewards", "logps"),
        names(in_one, "entropy", "logits", "mean_token_accuracy"),
    )
    assert (len(pairwise), len(tokenwise)) == (7, 4)
    for line, trl in zip(ours, in_one, strict=True):
        for key in trl:
            assert line[key] == pytest.approx(trl[key], rel=1e-4, abs=1e-5), key
    # A pair a batch, and batches weigh as pairs do; but tokens then weigh more in short completions.
    for trl, exact in zip(theirs(1), in_one, strict=True):
        assert {key: trl[key] for key in pairwise} == pytest.approx({key: exact[key] for key in pairwise}, abs=1e-4)
        assert any(trl[key] != pytest.approx(exact[key], rel=1e-3) for key in tokenwise)
    for trl, exact in zip(theirs(4), in_one, strict=True):
        assert trl["eval_loss"] == pytest.approx(exact["eval_loss"], rel=1e-4)  # the one that transformers averages
        assert trl["eval_rewards/margins"] != pytest.approx(exact["eval_rewards/margins"], rel=0.1)


def test_label_smoothing_of_sigmoid_is_heeded(sides: Sides) -> None:
    """Conservative DPO, -(1 - e) log s(x) - e log s(-x): TRL 0.x had it; 1.16 takes the option and ignores it."""
    plain, smoothed = sides.theirs("sigmoid"), sides.theirs("sigmoid", label_smoothing=0.2)
    assert smoothed == plain
    x, ones = torch.tensor([-0.7, 0.1, 2.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    zeros = 0 * ones
    pairs = PairLogps(x / BETA, zeros, zeros, zeros, ones, ones, zeros, ones, ones, mean_nll_tokens=1.0)
    config = LossConfig(loss_type=("sigmoid",), beta=BETA, label_smoothing=0.2)
    expected = 0.8 * torch.log1p(torch.exp(-x)) + 0.2 * torch.log1p(torch.exp(x))
    torch.testing.assert_close(pair_losses(pairs, config), expected, rtol=1e-12, atol=0)


def first_logits(sides: Sides) -> tuple[Tensor, Tensor, Tensor]:
    """Of the policy on the first global batch: mean logit [8, T], and where text and completions' predictors are."""
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
def test_mean_logits_of_orpo_and_cpo_are_of_completions_alone(name: str, positions: slice, sides: Sides) -> None:
    """TRL's ORPO and CPO mean over prompts and padding too, so that a batch's longest row moves the number.

    Here, as in TRL's DPO, logits/* is of the positions that predict the completions.
    """
    logits, text, predictors = first_logits(sides)
    assert not text.all(), "without padding the two would differ less"
    here, there = sides.ours(name).lines[0], sides.theirs(name)[0]
    for side, half in (("chosen", slice(4)), ("rejected", slice(4, 8))):
        assert there[f"logits/{side}"] == pytest.approx(logits[half, positions].mean().item(), rel=1e-4)
        assert here[f"logits/{side}"] == pytest.approx(logits[half][predictors[half]].mean().item(), rel=1e-4)


def test_no_likelihood_is_logged_where_none_is_trained_on(sides: Sides) -> None:
    """With cpo_alpha 0, TRL logs nll_loss 0, which is not the loss that it says; here the name is left out."""
    assert {entry["nll_loss"] for entry in sides.theirs("simpo")} == {0.0}
    assert not any("nll_loss" in line for line in sides.ours("simpo").lines)
