"""With loss_on=assistant, an update counts the tokens of assistant turns alone, from rows to gradients and metrics.

Each number is compared with the model's own forward on the text of a row, one sequence at a time, whose tokens are
marked by hand as an assistant's or another's.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from raydpo.batching.flops import FlopsModel
from raydpo.batching.planner import MicroBatchPlanner
from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.blocks.schema import Block
from raydpo.config import LossConfig
from raydpo.data.ray_stream import Slicing, raw_blocks
from raydpo.data.shards import Shard
from raydpo.data.tokenization import Truncation
from raydpo.data.tokenize_block import BlockRecipe, tokenize_block
from raydpo.feed.batches import BatchSource, FeedSpec
from raydpo.models.completion_logps import CompletionLogps
from raydpo.objectives.objective import counts_prompts
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.readers import StoreReader
from raydpo.reference.store import ReferenceStore
from raydpo.training.drift import Drift
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.step import Objective, train_micro_batches
from tests.data.conversations import CHOSEN, CHOSEN_PIECES, REJECTED, REJECTED_PIECES, USER, Piece, ids_and_mask, turns
from tests.data.tokenizers import TEMPLATE, build_tokenizer
from tests.training.ranks import Engine, gradient_of, model

pytestmark = pytest.mark.usefixtures("single_rank")

BETA = 0.2
YES: list[Piece] = [("hello<|end|>", True)]
RENDERED = "".join(text for text, _ in CHOSEN_PIECES)
ROWS: list[tuple[list[Any], list[Piece], list[Any], list[Piece]]] = [
    (CHOSEN, CHOSEN_PIECES, REJECTED, REJECTED_PIECES),
    (REJECTED, REJECTED_PIECES, turns(("assistant", "hello")), YES),
    # The tokens of CHOSEN, but as a single turn, all of which counts.
    (turns(("assistant", RENDERED.removesuffix("<|end|>"))), [(RENDERED, True)], REJECTED, REJECTED_PIECES),
]
"""Each pair's chosen completion, what it is rendered to, and the same of its rejected one. They share a prompt."""
PROMPT: list[Piece] = [("<|user|>hello world<|end|><|assistant|>", False)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(TEMPLATE)


@dataclass(frozen=True)
class Data:
    """A block of ROWS with scores."""

    block: Block
    store: ReferenceStore
    scores: dict[str, list[Any]]
    """Reference log-probs of each row's completion, one per token, masked ones included, by side."""


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": [USER], "chosen": chosen, "rejected": rejected} for chosen, _, rejected, _ in ROWS]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (raw,) = raw_blocks(Shard("a.jsonl", str(folder / "a.jsonl")), 0, Slicing("auto", 10))
    recipe = BlockRecipe(Truncation(), str(folder / "cache"), str(folder / "quarantine"), assistant_only=True)
    block = tokenize_block(raw, tokenizer, recipe).block
    assert block is not None
    assert block.pairs == len(ROWS)
    draw = np.random.default_rng(0)
    pairs = [TokenizedBlock(block).pair(row) for row in range(len(ROWS))]
    scores = {
        side: [draw.uniform(-6, -2, len(getattr(pair, f"{side}_ids"))).astype(np.float32) for pair in pairs]
        for side in ("chosen", "rejected")
    }
    store = ReferenceStore(str(folder / "cache"), ReferenceIdentity("weights", "architecture", None, "{}"))
    write_scores(store.url(block), scores["chosen"], scores["rejected"])
    return Data(block, store, scores)


def plain_values(tokenizer: PreTrainedTokenizerFast, data: Data) -> dict[str, Tensor]:
    """Return sums over assistant tokens, by name, [rows], values per token, and the weights of the model."""
    policy = model(vocabulary=len(tokenizer))
    lists: dict[str, list[Tensor]] = defaultdict(list)
    start = len(ids_and_mask(tokenizer, PROMPT)[0])
    for number, (_, chosen, _, rejected) in enumerate(ROWS):
        for side, pieces in (("chosen", chosen), ("rejected", rejected)):
            ids, learned = ids_and_mask(tokenizer, [*PROMPT, *pieces])
            row, counted = torch.tensor(ids)[None], torch.tensor(learned)[start:]
            logits = policy(input_ids=row).logits[0, :-1]
            every = logits.log_softmax(-1)
            logps = every.gather(1, row[0, 1:, None])[:, 0]
            lists[side].append(logps[start - 1 :][counted].sum())
            lists[f"{side} tokens"].append(counted.sum().float())
            lists[f"{side} of each token"].append(logps[start - 1 :][counted])
            reference = torch.tensor(data.scores[side][number])[counted]
            lists[f"ref {side}"].append(reference.sum())
            lists[f"ref {side} of each token"].append(reference)
            lists[f"{side} entropy"].append(-(every.exp() * every).sum(-1)[start - 1 :][counted].sum())
            lists[f"{side} logit"].append(logits.mean(-1)[start - 1 :][counted].sum())
            lists[f"{side} correct"].append((every.argmax(-1) == row[0, 1:])[start - 1 :][counted].float().sum())
            lists[f"{side} prompt"].append(logps[: start - 1].sum())
    ragged = {name: torch.cat(values) for name, values in lists.items() if name.endswith("of each token")}
    x = {name: torch.stack(values) for name, values in lists.items() if name not in ragged} | ragged
    x["a"], x["b"] = x["chosen"] - x["ref chosen"], x["rejected"] - x["ref rejected"]
    x["p"] = torch.full((len(ROWS),), start - 1.0)
    for side in ("chosen", "rejected"):  # LD-DPO: tokens beyond the number of the shorter completion's count half
        shorter = torch.minimum(x["chosen tokens"], x["rejected tokens"])
        gaps = [
            own - reference
            for own, reference in zip(lists[f"{side} of each token"], lists[f"ref {side} of each token"], strict=True)
        ]
        halved = [torch.where(torch.arange(len(gap)) < n, gap, gap / 2) for gap, n in zip(gaps, shorter, strict=True)]
        x[f"{side} halved"] = torch.stack([gap.sum() for gap in halved])
    return x | dict(policy.named_parameters())


def sigmoid_and_sft(x: dict[str, Tensor]) -> Tensor:
    return -F.logsigmoid(BETA * (x["a"] - x["b"])).mean() - 0.5 * x["chosen"].sum() / x["chosen tokens"].sum()


def ipo(x: dict[str, Tensor]) -> Tensor:
    gap = x["a"] / x["chosen tokens"] - x["b"] / x["rejected tokens"]
    return ((gap - 1 / (2 * BETA)) ** 2).mean()


def ld(x: dict[str, Tensor]) -> Tensor:
    return -F.logsigmoid(BETA * (x["chosen halved"] - x["rejected halved"])).mean()


def aot(x: dict[str, Tensor]) -> Tensor:
    policy, reference = x["chosen"] - x["rejected"], x["ref chosen"] - x["ref rejected"]
    return -F.logsigmoid(BETA * (policy.sort().values - reference.sort().values)).mean()


def orpo(x: dict[str, Tensor]) -> Tensor:
    chosen, rejected = (x["chosen"] / x["chosen tokens"]).exp(), (x["rejected"] / x["rejected tokens"]).exp()
    odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    nll = -(x["chosen"].sum() + x["chosen prompt"].sum()) / (x["chosen tokens"].sum() + x["p"].sum())
    return nll - BETA * F.logsigmoid(odds_ratio.log()).mean()


CASES: dict[str, tuple[LossConfig, Callable[[dict[str, Tensor]], Tensor]]] = {
    "sigmoid+sft": (LossConfig(beta=BETA, loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5)), sigmoid_and_sft),
    "ipo": (LossConfig(beta=BETA, loss_type="ipo"), ipo),
    "ld": (LossConfig(beta=BETA, ld_alpha=0.5), ld),
    "aot": (LossConfig(beta=BETA, loss_type="aot"), aot),
    "orpo": (LossConfig(beta=BETA, loss_type="orpo"), orpo),
}


def train(
    tokenizer: PreTrainedTokenizerFast, data: Data, loss: LossConfig, tokens: int, *, padded: bool
) -> tuple[Tensor, dict[str, float], int]:
    """Make an update in micro-batches of up to `tokens` tokens; return gradient, metrics and number of forwards."""
    flops = FlopsModel(1.0, 1.0, ())
    spec = FeedSpec(
        seed=0,
        sampling="sequential",
        window=1,
        global_batch=len(ROWS),
        planner=MicroBatchPlanner(tokens=tokens, flops=flops, padded=padded),
        update_flops=flops,
        ranks=1,
        with_prompts=counts_prompts(loss),
    )
    (batch,) = BatchSource([data.block], StoreReader(data.store), spec).rank_batches(0)
    policy = CompletionLogps(model(shares=not padded, vocabulary=len(tokenizer)), shares=not padded)
    sums, drift = MetricSums(), Drift(torch.device("cpu"))
    objective = Objective(loss, 0.0, RewardMean())
    for micro_batch, values in train_micro_batches(
        Engine(policy), batch, objective, sums, seed=0, with_statistics=True
    ):
        drift.add(micro_batch, values)
    return gradient_of(policy), sums.means(torch.device("cpu")) | drift.reduced(), len(batch.micro_batches)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tokens", [10**6, 1])
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_the_assistants_tokens(
    tokenizer: PreTrainedTokenizerFast, data: Data, case: str, tokens: int, padded: bool
) -> None:
    loss, formula = CASES[case]
    x = plain_values(tokenizer, data)
    expected = formula(x)
    parameters = [value for value in x.values() if isinstance(value, torch.nn.Parameter)]
    expected_gradient = torch.cat([grad.flatten() for grad in torch.autograd.grad(expected, parameters)])
    gradient, metrics, forwards = train(tokenizer, data, loss, tokens, padded=padded)
    assert forwards == (len(ROWS) if tokens == 1 else 1)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert expected_gradient.norm() > 1e-3, "the gradient must not be zero"
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("padded", [False, True])
def test_metrics_count_the_assistants_tokens(tokenizer: PreTrainedTokenizerFast, data: Data, padded: bool) -> None:
    x = plain_values(tokenizer, data)
    _, metrics, _ = train(tokenizer, data, CASES["sigmoid+sft"][0], 10**6, padded=padded)
    count = {side: x[f"{side} tokens"].sum() for side in ("chosen", "rejected")}
    gap = torch.cat([x[f"{side} of each token"] - x[f"ref {side} of each token"] for side in count]).abs()
    expected = {
        "logps/chosen": x["chosen"].mean(),
        "logps/rejected": x["rejected"].mean(),
        "rewards/margins": BETA * (x["a"] - x["b"]).mean(),
        "nll_loss": -x["chosen"].sum() / count["chosen"],
        "entropy": (x["chosen entropy"].sum() + x["rejected entropy"].sum()) / sum(count.values()),
        "mean_token_accuracy": x["chosen correct"].sum() / count["chosen"],
        "logits/chosen": x["chosen logit"].sum() / count["chosen"],
        "logits/rejected": x["rejected logit"].sum() / count["rejected"],
        "reference_drift/mean": gap.mean(),
        "reference_drift/max": gap.max(),
    }
    assert {name: metrics[name] for name in expected} == {
        name: pytest.approx(value.item(), rel=1e-4, abs=1e-6) for name, value in expected.items()
    }


def test_no_logits_are_computed_for_masked_tokens(tokenizer: PreTrainedTokenizerFast, data: Data) -> None:
    def count(pieces: list[Piece]) -> int:
        return sum(ids_and_mask(tokenizer, pieces)[1])

    flops = FlopsModel(0.0, 1.0, ())
    planner = MicroBatchPlanner(tokens=10**6, flops=flops, padded=False)
    spec = FeedSpec(0, "sequential", 1, global_batch=2, planner=planner, update_flops=flops, ranks=1)
    (batch,) = BatchSource([data.block], StoreReader(data.store), spec).rank_batches(0)
    expected = count(CHOSEN_PIECES) + count(REJECTED_PIECES) + count(YES)  # REJECTED is in both pairs
    (micro_batch,) = batch.micro_batches
    assert len(micro_batch.targets) == len(micro_batch.predictors) == expected
    assert batch.flops == expected
    assert batch.nll_tokens == count(CHOSEN_PIECES) + count(REJECTED_PIECES)
    # All tokens are inputs, and num_tokens counts these.
    lengths = [len(ids_and_mask(tokenizer, pieces)[0]) for pieces in (PROMPT, CHOSEN_PIECES, REJECTED_PIECES, YES)]
    assert batch.tokens == 4 * lengths[0] + lengths[1] + 2 * lengths[2] + lengths[3]
