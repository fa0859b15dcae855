"""The one definition of a log-prob, used by the scorer and the trainer alike.

Legend of shape suffixes: B pairs, R rows (2B), T tokens of a row, N completion tokens of the batch, H hidden size,
V vocabulary, C tokens of a chunk.

A completion token's log-prob is a float32 log-softmax of the logits at the position before it. Only completion tokens
reach the vocabulary, C of them at a time, so that no [R, T, V] tensor ever exists.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.errors import ModelError
from raydpo.models.router import RouterLoss

CHUNK_TOKENS = 1024
"""Completion tokens whose logits are held at a time: C x V x 4 bytes, 0.6 GB for a vocabulary of 150,000."""


@dataclass(frozen=True)
class LogitTransform:
    """What some models do to their logits after the head; the identity by default."""

    scale: float = 1.0
    """Factor (Cohere's `logit_scale`, one over Granite's `logits_scaling`)."""
    softcap: float | None = None
    """Gemma's `final_logit_softcapping` c: c * tanh(logits / c)."""

    def __call__(self, logits_CV: Tensor) -> Tensor:
        """The transformed logits, [C, V]."""
        logits_CV = logits_CV * self.scale if self.scale != 1.0 else logits_CV
        return logits_CV if self.softcap is None else self.softcap * torch.tanh(logits_CV / self.softcap)

    def backward(self, transformed_CV: Tensor, grad_CV: Tensor) -> Tensor:
        """The gradient with respect to the logits, from the transformed ones and the gradient with respect to them."""
        if self.softcap is not None:
            grad_CV = grad_CV * (1 - (transformed_CV / self.softcap) ** 2)
        return grad_CV * self.scale if self.scale != 1.0 else grad_CV

    @staticmethod
    def of(config: Any) -> "LogitTransform":
        """Read it from a Hugging Face model config."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return LogitTransform(scale=scale, softcap=getattr(config, "final_logit_softcapping", None))


@dataclass(frozen=True)
class TokenLogps:
    """What a forward says of N tokens; all but the log-probs are empty unless asked for."""

    logps: Tensor
    """[N] float32, natural log, differentiable."""
    entropy: Tensor
    """[N] entropy of the predicted distribution, in nats."""
    correct: Tensor
    """[N] 1 where the token was the most likely one."""
    mean_logit: Tensor
    """[N] mean of the logits over the vocabulary."""
    collision: Tensor
    """[N] log of the chance that two draws from the predicted distribution agree, log sum p^2."""
    router_loss: Tensor
    """[] load-balancing loss of the experts over all tokens of the forward; 0 for dense models."""

    def head(self, count: int) -> "TokenLogps":
        """The first `count` tokens."""
        return TokenLogps(
            logps=self.logps[:count],
            entropy=self.entropy[:count],
            correct=self.correct[:count],
            mean_logit=self.mean_logit[:count],
            collision=self.collision[:count],
            router_loss=self.router_loss,
        )


@dataclass(frozen=True)
class Wanted:
    """What a forward shall say beside the log-probs; each costs a pass over the vocabulary."""

    statistics: bool = False
    """Entropy, accuracy, mean logit."""
    collision: bool = False
    """`TokenLogps.collision`."""


NOTHING_MORE = Wanted()


class _ChunkedLogps(torch.autograd.Function):
    """log softmax(transform(hidden W^T + b))[target], a chunk of tokens at a time.

    Forward keeps the log-sum-exp of each token; backward recomputes a chunk's logits and accumulates the gradients of
    hidden states and weight. One autograd node, so that ZeRO-3 gathers the weight once, whatever the number of chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        transform: LogitTransform,
        wanted: Wanted,
    ) -> tuple[Tensor, ...]:
        count = len(targets_N)
        extra = count if wanted.statistics else 0
        logps, lse = (hidden_NH.new_empty(count, dtype=torch.float32) for _ in range(2))
        entropy, correct, mean_logit = (hidden_NH.new_empty(extra, dtype=torch.float32) for _ in range(3))
        collision = hidden_NH.new_empty(count if wanted.collision else 0, dtype=torch.float32)
        for chunk in _chunks(count):
            logits_CV = _logits(hidden_NH[chunk], weight_VH, bias_V, transform)
            lse[chunk] = torch.logsumexp(logits_CV, dim=-1)
            logps[chunk] = logits_CV.gather(1, targets_N[chunk, None]).squeeze(1) - lse[chunk]
            if wanted.collision:
                collision[chunk] = torch.logsumexp(2 * logits_CV, dim=-1) - 2 * lse[chunk]
            if wanted.statistics:
                correct[chunk] = (logits_CV.argmax(dim=-1) == targets_N[chunk]).float()
                mean_logit[chunk] = logits_CV.mean(dim=-1)
                # H = log Z - E[logit], with E under the softmax
                entropy[chunk] = lse[chunk] - ((logits_CV - lse[chunk, None]).exp() * logits_CV).sum(dim=-1)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, lse)
        ctx.transform = transform
        ctx.mark_non_differentiable(entropy, correct, mean_logit, collision)
        return logps, entropy, correct, mean_logit, collision

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
        hidden_NH, weight_VH, bias_V, targets_N, lse = ctx.saved_tensors
        grad_N = grads[0]
        grad_hidden = torch.zeros_like(hidden_NH)
        # fp32, as many small chunks are summed: bf16 would lose the later ones.
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for chunk in _chunks(len(targets_N)):
            logits_CV = _logits(hidden_NH[chunk], weight_VH, bias_V, ctx.transform)
            # d logp / d logits = onehot(target) - softmax
            grad_CV = -(logits_CV - lse[chunk, None]).exp()
            grad_CV[torch.arange(len(grad_CV), device=grad_CV.device), targets_N[chunk]] += 1
            grad_CV = ctx.transform.backward(logits_CV, grad_CV * grad_N[chunk, None])
            if grad_bias is not None:
                grad_bias += grad_CV.sum(dim=0)
            narrow_CV = grad_CV.to(hidden_NH.dtype)
            grad_hidden[chunk] = narrow_CV @ weight_VH
            if grad_weight is not None:
                grad_weight += narrow_CV.T @ hidden_NH[chunk]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _chunks(count: int) -> list[slice]:
    return [slice(first, first + CHUNK_TOKENS) for first in range(0, count, CHUNK_TOKENS)]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, transform: LogitTransform) -> Tensor:
    return transform(nn.functional.linear(hidden_CH, weight_VH, bias_V).float())


class CompletionHead(nn.Module):
    """Takes the place of a model's output embedding: same parameters, but log-probs of given tokens as output."""

    def __init__(self, output_embedding: nn.Module, transform: LogitTransform) -> None:
        """Share (not copy) the weight and bias of `output_embedding`, so that names and ties stay as they were."""
        super().__init__()
        weight, bias = getattr(output_embedding, "weight", None), getattr(output_embedding, "bias", None)
        if not isinstance(weight, nn.Parameter):
            raise ModelError(
                f"the output embedding is a {type(output_embedding).__name__} without a weight of its own; only a "
                "linear head can be trained: leave the output embedding out of lora_target_modules and of quantisation"
            )
        self.weight = weight
        self.bias: nn.Parameter | None = bias
        self.transform = transform

    def forward(
        self, hidden_RTH: Tensor, predictors_N: Tensor, targets_N: Tensor, wanted: Wanted
    ) -> tuple[Tensor, ...]:
        """The fields of `TokenLogps` that are [N]; a tuple, since ZeRO-3's hooks look into tuples only."""
        hidden_NH = hidden_RTH.reshape(-1, hidden_RTH.shape[-1])[predictors_N]
        outputs: tuple[Tensor, ...] = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]
            hidden_NH, self.weight, self.bias, targets_N, self.transform, wanted
        )
        return outputs


class CompletionLogps(nn.Module):
    """A causal language model (plain or with a LoRA adapter) whose forward gives completion tokens' log-probs."""

    def __init__(self, model: nn.Module, router_loss: RouterLoss | None = None) -> None:
        """Put a `CompletionHead` in place of the model's output embedding; the model cannot generate afterwards."""
        super().__init__()
        self.model = model
        self._router_loss = router_loss
        head = CompletionHead(self.causal_lm.get_output_embeddings(), LogitTransform.of(self.causal_lm.config))
        self.causal_lm.set_output_embeddings(head)
        if self.causal_lm.base_model is self.causal_lm or self.causal_lm.get_output_embeddings() is not head:
            raise ModelError(
                f"{type(self.causal_lm).__name__} does not keep its body and its output embedding apart; "
                "only decoder models with an `lm_head` can be trained"
            )

    @property
    def causal_lm(self) -> Any:
        """The transformers model, inside the adapter where there is one."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        predictors: Tensor,
        targets: Tensor,
        wanted: Wanted = NOTHING_MORE,
    ) -> tuple[Tensor, ...]:
        """`input_ids`, `attention_mask` [R, T]; `predictors`, `targets` [N] (see `MicroBatch`) -> as `TokenLogps`."""
        causal_lm = self.causal_lm
        # Asked for only where it is used: some models' configs have it on.
        router = {} if self._router_loss is None else {"output_router_logits": True}
        body = causal_lm.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **router)
        hidden_RTH = body.last_hidden_state
        outputs: tuple[Tensor, ...] = causal_lm.get_output_embeddings()(hidden_RTH, predictors, targets, wanted)
        loss = self._router_loss(body.router_logits, attention_mask) if self._router_loss else hidden_RTH.new_zeros(())
        return *outputs, loss


def completion_sums(token_values: Tensor, completion: Tensor, rows: int) -> Tensor:
    """Sum [N] per-token values over each of `rows` completions -> [rows], in the values' dtype."""
    return token_values.new_zeros(rows).index_add(0, completion, token_values)
