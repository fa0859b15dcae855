"""A tiny model of any family through what a run does with it, against its own forward of each sequence alone."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WITH_IMAGES

from raydpo.batching.collate import collate
from raydpo.batching.micro_batch import MicroBatch
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import TokenizedPair
from raydpo.models.attention.choice import AttentionChoice, choose
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.forward_check import CheckedModel, check_forward
from raydpo.models.loading import disable_dropout, enable_gradient_checkpointing, load_causal_lm, load_config
from raydpo.models.source import ModelSource, resolve_model
from tests.models.matrix.configs import WORDS
from tests.models.packed import sequences

MAX_PARAMETERS = 9_000_000
SPREAD = 0.15
"""Standard deviation of the random weights: so large that each token's state depends on all that it sees."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of the tests as one micro-batch, and the weights of their tokens in the objective."""

    members: list[TokenizedPair]
    batch: MicroBatch

    @property
    def tokens(self) -> Tensor:
        """[M]: index into the targets of each token of the 2B completions."""
        return torch.from_numpy(self.batch.target_index)

    @property
    def weights(self) -> Tensor:
        """[M]: random factors, whose weighted sum of log-probs is the objective that gradients are taken of."""
        return torch.randn(len(self.tokens), generator=torch.Generator().manual_seed(1))


def some_pairs() -> Pairs:
    """Return four pairs of unequal lengths up to 40 tokens, two of which have the prompt and a completion in common."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> Any:
        return draw.integers(WORDS.start, WORDS.stop, count)

    shared, better, worse, worst = ids(19), ids(12), ids(5), ids(9)
    members = [
        TokenizedPair("a", shared, better, worse),
        TokenizedPair("b", ids(1), ids(14), ids(2)),
        TokenizedPair("c", shared, worse, worst),
        TokenizedPair("d", ids(23), ids(1), ids(17)),
    ]
    return Pairs(members, collate(build_prompt_trees(members, 10**6), members))


def auto_class(model_type: str) -> Any:
    """Return the class of transformers that builds this type as checkpoints have it, with a language model's head."""
    return AutoModelForImageTextToText if model_type in WITH_IMAGES else AutoModelForCausalLM


def save_tiny(config: Any, folder: Path) -> None:
    """Write a model of this config with random weights; raise ValueError if the config is not that of a small one."""
    auto = auto_class(config.model_type)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(copy.deepcopy(config)).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"a tiny {config.model_type} has {size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomise(name, parameter)
    model.tie_weights()
    model.save_pretrained(folder)


def _randomise(name: str, parameter: Tensor) -> None:
    """Draw a weight: a matrix around 0, a norm's around 1; the decay of a state-space layer keeps its own range."""
    if name.endswith(("A_log", "dt_bias", ".D")):
        return
    centre, spread = (0.0, SPREAD) if parameter.dim() > 1 else (float("norm" in name or "ln" in name), 0.3)
    parameter.copy_(centre + torch.randn_like(parameter) * spread)


def own_model(model_type: str, folder: Path) -> Any:
    """Return the model as transformers loads it."""
    return auto_class(model_type).from_pretrained(folder, dtype=torch.float32).eval()


def own_logps(model: Any, pairs: Pairs) -> Tensor:
    """Return the log-probs [M] of the completions' tokens, by a forward of each sequence alone with all its logits."""
    found = []
    for ids, prompt in sequences(pairs.members, pairs.batch):
        logits = model(input_ids=ids[None], use_cache=False).logits[0, : len(ids)].float()
        found.append(logits[prompt - 1 : -1].log_softmax(dim=-1).gather(1, ids[prompt:, None])[:, 0])
    return torch.cat(found)


@dataclass(frozen=True)
class Subject:
    """A model's folder and how a run would compute it."""

    source: ModelSource
    choice: AttentionChoice

    @staticmethod
    def at(folder: Path, *, share_prompts: bool = True) -> "Subject":
        """Choose rows and attention as a run on a CPU does; raise ModelError if it refuses the model."""
        source = resolve_model(str(folder), None)
        config = load_config(source, trust_remote_code=False)
        choice = choose(config, attn_implementation=None, share_prompts=share_prompts, gpu=False, dtype="float32")
        return Subject(source, choice)

    def load(self) -> Any:
        """Load the model as a run does."""
        implementation = self.choice.implementation
        return load_causal_lm(self.source, dtype="float32", attn_implementation=implementation, trust_remote_code=False)

    def scorer(self) -> CompletionLogps:
        """Return the model as scoring workers have it; raise ModelError if they refuse it."""
        policy = CompletionLogps(self.load(), shares=self.choice.shares).eval()
        check_forward(CheckedModel(policy, policy, "float32", trains=False))
        return policy

    def policy(self, *, checkpointing: bool = False) -> CompletionLogps:
        """Return the model as train workers have it, in training mode; raise ModelError if they refuse it."""
        model = self.load()
        if checkpointing:
            enable_gradient_checkpointing(model)
        disable_dropout(model)
        policy = CompletionLogps(model, shares=self.choice.shares)
        check_forward(CheckedModel(policy, policy, "float32", trains=True))
        return policy.train()


def gradients(model: Any) -> dict[str, Tensor]:
    """Return the gradient of each weight that has one, by the name that it has in models with and without images."""
    found = model.named_parameters()
    return {name.replace("language_model.", ""): weight.grad for name, weight in found if weight.grad is not None}


def gradient_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest distance of two gradients of a weight, relative to the expected one's norm.

    A norm counts as at least a thousandth of the largest, so that weights whose gradient is rounding do not decide.
    """
    floor = max(float(gradient.norm()) for gradient in expected.values()) / 1000
    gaps = [0.0]
    for name in found.keys() | expected.keys():
        ours, theirs = found.get(name), expected.get(name)
        some = ours if ours is not None else theirs
        assert some is not None
        ours, theirs = (torch.zeros_like(some) if side is None else side for side in (ours, theirs))
        gaps.append(float((ours - theirs).norm()) / max(float(theirs.norm()), floor))
    return max(gaps)


def compare(model_type: str, folder: Path, subject: Subject, pairs: Pairs) -> dict[str, float]:
    """Return the largest differences of a run's log-probs and gradients from those of the model's own forward.

    Raises ModelError if scoring or train workers refuse the model.
    """
    own = own_model(model_type, folder)
    scorer, policies = subject.scorer(), {"training": subject.policy()}
    if own.supports_gradient_checkpointing:
        policies["checkpointing"] = subject.policy(checkpointing=True)
    expected = own_logps(own, pairs)
    (expected * pairs.weights).sum().backward()
    theirs, expected = gradients(own), expected.detach()
    with torch.no_grad():
        scored = scorer(pairs.batch)[0][pairs.tokens]
    found = {"scores": float((scored - expected).abs().max())}
    for name, policy in policies.items():
        logps = policy(pairs.batch)[0][pairs.tokens]
        (logps * pairs.weights).sum().backward()
        found[name] = float((logps.detach() - expected).abs().max())
        found[f"{name} gradients"] = gradient_gap(gradients(policy.causal_lm), theirs)
    return found
