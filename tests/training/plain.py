"""Every loss as a plain torch loop over padless sequences and full logits, for a whole batch at once.

Nothing here is code of raydpo. A row with an integer weight is a row that is given as often (`repeated`), so that a
weighted batch is compared with an unweighted one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Values = dict[str, Tensor]
"""Numbers of the pairs by name, each [pairs]."""
BETA = 0.2


def log_probs(policy: Any, pairs: Sequence[Any], ld_alpha: float = 1.0) -> Values:
    """Return sums of log-probs from full logits, reference log-probs, token counts, WPO's weights and margins.

    a and b are the log-ratios of chosen and rejected, n and m their numbers of tokens, p those of the prompts.
    """
    lists: dict[str, list[Tensor]] = defaultdict(list)
    for pair in pairs:
        shorter = min(len(pair.chosen_ids), len(pair.rejected_ids))
        certainty = torch.zeros(())
        for side, ids, scores in (
            ("chosen", pair.chosen_ids, pair.ref_chosen_logps),
            ("rejected", pair.rejected_ids, pair.ref_rejected_logps),
        ):
            row = torch.tensor([*pair.prompt_ids, *ids])[None]
            every = policy(input_ids=row).logits[0, :-1].log_softmax(-1)
            logps = every.gather(1, row[0, 1:, None])[:, 0]
            start = len(pair.prompt_ids) - 1
            tail = torch.tensor([1.0 if place < shorter else ld_alpha for place in range(len(ids))])
            lists[side].append((tail * logps[start:]).sum())
            lists[f"ref_{side}"].append((tail * torch.tensor(scores)).sum())
            lists["n" if side == "chosen" else "m"].append(torch.tensor(float(len(ids))))
            certainty = certainty + (logps[start:] - every[start:].exp().square().sum(-1).log()).mean().detach()
            if side == "chosen":
                lists["nll"].append(-logps[start:].sum())
                lists["prompt"].append(logps[:start].sum())
                lists["p"].append(torch.tensor(float(start)))
        lists["wpo"].append(certainty.exp())
        lists["margin"].append(torch.tensor(pair.margin))
    stacked = {name: torch.stack(values) for name, values in lists.items()}
    stacked["a"] = stacked["chosen"] - stacked["ref_chosen"]
    stacked["b"] = stacked["rejected"] - stacked["ref_rejected"]
    return stacked


def repeated(x: Mapping[str, Tensor], times: Sequence[int]) -> Values:
    """Return a batch in which pair i is given times[i] times."""
    return {name: values.repeat_interleave(torch.tensor(times)) for name, values in x.items()}


def smoothed(x: Tensor, e: float = 0.0) -> Tensor:
    """Return the cross-entropy of a label that is wrong with probability e."""
    return -(1 - e) * F.logsigmoid(x) - e * F.logsigmoid(-x)


def kl(one: Tensor, other: Tensor) -> Tensor:
    """Return the KL divergence between two coins, given their logits."""
    coins = (torch.distributions.Bernoulli(logits=logits) for logits in (one, other))
    return torch.distributions.kl_divergence(*coins)


def exo(x: Tensor, e: float) -> Tensor:
    """Return the KL divergence from a coin with logit x to one that shows heads with probability 1 - e."""
    return kl(x, torch.full_like(x, math.log((1 - e) / e)))


def odds(mean_logp: Tensor) -> Tensor:
    """Return p / (1 - p)."""
    return mean_logp.exp() / (1 - mean_logp.exp())


def bco(x: Values) -> Tensor:
    """Return BCO without a running mean."""
    return -F.logsigmoid(BETA * x["a"]) - F.logsigmoid(-BETA * x["b"])


def bco_running_mean(x: Values) -> Tensor:
    """Return BCO whose delta is the mean of the batch's rewards."""
    delta = BETA * torch.cat([x["a"], x["b"]]).mean().detach()
    return -F.logsigmoid(BETA * x["a"] - delta) - F.logsigmoid(-(BETA * x["b"] - delta))


def discopop(x: Values) -> Tensor:
    """Return DiscoPOP with its default temperature."""
    z = BETA * (x["a"] - x["b"])
    share = torch.sigmoid(z / 0.05)
    return -(1 - share) * F.logsigmoid(z) + share * torch.exp(-z)


def sft(x: Values) -> Tensor:
    """Return the mean negative log-likelihood per token of the chosen completions, for each pair."""
    return (x["nll"].sum() / x["n"].sum()).expand(len(x["n"]))


def orpo(x: Values) -> Tensor:
    """Return the likelihood of prompts and chosen completions and the odds-ratio term."""
    nll = (x["nll"].sum() - x["prompt"].sum()) / (x["n"].sum() + x["p"].sum())
    ratio = odds(x["chosen"] / x["n"]) / odds(x["rejected"] / x["m"])
    return nll - BETA * F.logsigmoid(ratio.log())


LOSSES: dict[str, Callable[[Values], Tensor]] = {
    "sigmoid": lambda x: smoothed(BETA * (x["a"] - x["b"]) - x["margin"]),
    "hinge": lambda x: torch.relu(1 + x["margin"] - BETA * (x["a"] - x["b"])),
    "ipo": lambda x: (x["a"] / x["n"] - x["b"] / x["m"] - 1 / (2 * BETA)) ** 2,
    "exo_pair": lambda x: exo(BETA * (x["a"] - x["b"]), 1e-3),
    "nca_pair": lambda x: smoothed(BETA * x["a"]) + (smoothed(-BETA * x["a"]) + smoothed(-BETA * x["b"])) / 2,
    "robust": lambda x: smoothed(BETA * (x["a"] - x["b"]) - x["margin"]),
    "bco_pair": bco,
    "sppo_hard": lambda x: (x["a"] - 0.5 / BETA) ** 2 + (x["b"] + 0.5 / BETA) ** 2,
    "aot": lambda x: smoothed(
        BETA * ((x["chosen"] - x["rejected"]).sort().values - (x["ref_chosen"] - x["ref_rejected"]).sort().values)
    ),
    "aot_unpaired": lambda x: smoothed(BETA * (x["a"].sort().values - x["b"].sort().values)),
    "apo_zero": lambda x: 1 - torch.sigmoid(BETA * x["a"]) + torch.sigmoid(BETA * x["b"]),
    "apo_down": lambda x: torch.sigmoid(BETA * x["a"]) + 1 - torch.sigmoid(BETA * (x["a"] - x["b"])),
    "discopop": discopop,
    "sft": sft,
    "sigmoid_norm": lambda x: smoothed(BETA * (x["a"] / x["n"] - x["b"] / x["m"]) - x["margin"]),
    "rpo_bwd_kl": lambda x: kl(x["margin"], BETA * (x["a"] - x["b"])),
    "simpo": lambda x: smoothed(BETA * (x["chosen"] / x["n"] - x["rejected"] / x["m"]) - 0.5 - x["margin"]),
    "orpo": orpo,
}
"""The loss of each pair of a whole batch [pairs], by the values of `loss_type`, with the defaults of their options."""
