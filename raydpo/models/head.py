"""The single definition of a log-prob, used for scoring and for training.

Legend of shape suffixes: R rows, T tokens of a row, N predicted tokens, H hidden size, V vocabulary, C of a chunk.

The log-prob of a token is the float32 log-softmax of the logits of the token before it. The head only runs on the
tokens that are requested, C of them at a time, so that no [R, T, V] tensor ever exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.errors import ModelError
from raydpo.models.logit_transform import LogitTransform

CPU_LOGITS_BYTES = 256 * 2**20
"""Memory for the logits of one chunk on a CPU, in bytes."""
GPU_LOGITS_SHARE = 1 / 16
"""Memory for the logits of one chunk on a GPU, as a fraction of the memory of the GPU."""

STATS_CHUNK_ROWS = 64
"""Number of tokens whose statistics are computed at a time."""


def default_chunk_tokens(device: torch.device, vocabulary: int) -> int:
    """Return the default number of tokens whose float32 logits may be in memory at a time."""
    memory: float = CPU_LOGITS_BYTES
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory * GPU_LOGITS_SHARE
    return max(int(memory / (4 * vocabulary)), 1)


@dataclass(frozen=True)
class TokenLogps:
    """The outputs of a forward for N tokens; all but the log-probs and the router loss are empty unless requested."""

    logps: Tensor
    """[N] float32: log-prob of each token, natural logarithm, differentiable."""
    entropy: Tensor
    """[N]: entropy of the predicted distribution, in nats."""
    correct: Tensor
    """[N]: 1 if the token was the most likely one, else 0."""
    mean_logit: Tensor
    """[N]: mean of the logits over the vocabulary."""
    collision: Tensor
    """[N]: log of the probability that two draws from the predicted distribution are equal, log sum p^2."""
    router_loss: Tensor
    """[]: load-balancing loss of the experts over all tokens of the forward; 0 for dense models."""

    def pick(self, tokens: Tensor) -> "TokenLogps":
        """Return the outputs for the tokens with the given indices [M]; an index may occur more than once."""

        def picked(values: Tensor) -> Tensor:
            return values[tokens] if len(values) else values

        return TokenLogps(
            logps=self.logps[tokens],
            entropy=picked(self.entropy),
            correct=picked(self.correct),
            mean_logit=picked(self.mean_logit),
            collision=picked(self.collision),
            router_loss=self.router_loss,
        )


@dataclass(frozen=True)
class TokenStatsRequest:
    """The statistics that a forward computes in addition to the log-probs; each costs a pass over the vocabulary."""

    statistics: bool = False
    """Whether to compute entropy, accuracy and mean logit."""
    collision: bool = False
    """Whether to compute `TokenLogps.collision`."""


LOGPS_ONLY = TokenStatsRequest()


class _ChunkedLogps(torch.autograd.Function):
    """Autograd function of log softmax(transform(hidden W^T + b))[target], computed one chunk of tokens at a time.

    The forward keeps the log-softmax of the last chunk, which is in memory anyway; the backward starts with it and
    recomputes the other chunks. So only one chunk exists at a time, and nothing is computed twice if all tokens fit
    into one chunk. If the weight is frozen, as under LoRA, the forward computes each token's d logp / d hidden [N, H]
    instead, which is all that the backward needs: nothing is computed twice, however small the chunks are. It is a
    single autograd node, so that ZeRO-3 gathers the weight once, whatever the number of chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: "CompletionHead",
        request: TokenStatsRequest,
    ) -> tuple[Tensor, ...]:
        count = len(targets_N)
        extra = count if request.statistics else 0
        logps, lse = (hidden_NH.new_empty(count, dtype=torch.float32) for _ in range(2))
        entropy, correct, mean_logit = (hidden_NH.new_empty(extra, dtype=torch.float32) for _ in range(3))
        collision = hidden_NH.new_empty(count if request.collision else 0, dtype=torch.float32)
        learns = any(ctx.needs_input_grad[1:3])
        slopes_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] and not learns else None
        logps_CV = None
        for chunk in _chunks(count, head.chunk_tokens):
            logits_CV = _logits(hidden_NH[chunk], weight_VH, bias_V, head.transform, logps_CV)
            target_C = logits_CV.gather(1, targets_N[chunk, None]).squeeze(1)
            if request.statistics:
                mean_logit[chunk] = head.transform.mean(logits_CV)
            logps_CV = _log_softmax(logits_CV)
            logps[chunk] = logps_CV.gather(1, targets_N[chunk, None]).squeeze(1)
            lse[chunk] = target_C - logps[chunk]
            if request.collision:
                collision[chunk] = _by_rows(lambda part: torch.logsumexp(2 * part, dim=-1), logps_CV)
            if request.statistics:
                correct[chunk] = (logps_CV.argmax(dim=-1) == targets_N[chunk]).float()
                entropy[chunk] = _by_rows(lambda part: -torch.linalg.vecdot(part.exp(), part), logps_CV)
            if slopes_NH is not None:
                ones_C = torch.ones_like(target_C)
                grad_CV = _logit_grads(logps_CV, lse[chunk], targets_N[chunk], ones_C, head.transform)
                torch.mm(grad_CV.to(hidden_NH.dtype), weight_VH, out=slopes_NH[chunk])
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, lse, slopes_NH)
        ctx.head = head
        ctx.last_logps = logps_CV if learns else None
        ctx.mark_non_differentiable(entropy, correct, mean_logit, collision)
        return logps, entropy, correct, mean_logit, collision

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
        hidden_NH, weight_VH, bias_V, targets_N, lse, slopes_NH = ctx.saved_tensors
        grad_N = grads[0]
        if slopes_NH is not None:
            return (slopes_NH * grad_N[:, None]).to(hidden_NH.dtype), None, None, None, None, None
        grad_hidden = torch.empty_like(hidden_NH)
        # float32, as many small chunks are summed: bfloat16 would lose the later ones.
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        logps_CV, ctx.last_logps = ctx.last_logps, None
        chunks = _chunks(len(targets_N), ctx.head.chunk_tokens)
        for chunk in reversed(chunks):
            if chunk is not chunks[-1] or logps_CV is None:
                logps_CV = _log_softmax(_logits(hidden_NH[chunk], weight_VH, bias_V, ctx.head.transform, logps_CV))
            grad_CV = _logit_grads(logps_CV, lse[chunk], targets_N[chunk], grad_N[chunk], ctx.head.transform)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(dim=0)
            narrow_CV = grad_CV.to(hidden_NH.dtype)
            torch.mm(narrow_CV, weight_VH, out=grad_hidden[chunk])
            if grad_weight is not None and narrow_CV.dtype == torch.float32:
                grad_weight.addmm_(narrow_CV.T, hidden_NH[chunk])
            elif grad_weight is not None:
                grad_weight += narrow_CV.T @ hidden_NH[chunk]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _chunks(count: int, size: int) -> list[slice]:
    """Return slices of at most `size` tokens; the first holds the remainder, so that the last is the largest."""
    firsts = range(count % size - size if count % size else 0, count, size)
    return [slice(max(first, 0), first + size) for first in firsts]


def _logits(
    hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, transform: LogitTransform, buffer: Tensor | None
) -> Tensor:
    """Return the transformed logits [C, V] in float32.

    They are written to the memory of `buffer` if they fit: allocating fresh pages is slow on a CPU.
    """
    if hidden_CH.dtype == torch.float32 and buffer is not None and len(buffer) >= len(hidden_CH):
        logits_CV = torch.mm(hidden_CH, weight_VH.T, out=buffer[: len(hidden_CH)])
        return transform(logits_CV if bias_V is None else logits_CV.add_(bias_V))
    return transform(nn.functional.linear(hidden_CH, weight_VH, bias_V).float())


def _log_softmax(logits_CV: Tensor) -> Tensor:
    """Return the log-softmax over the vocabulary.

    On a CPU it overwrites the logits, which is safe as the CPU kernel has read a row before it writes it.
    """
    return torch.log_softmax(logits_CV, dim=-1, out=logits_CV if logits_CV.device.type == "cpu" else None)


def _by_rows(function: Callable[[Tensor], Tensor], values_CV: Tensor) -> Tensor:
    """Return the function's value per row, [C], computing some rows at a time.

    This keeps its intermediate values from taking a second [C, V].
    """
    return torch.cat([function(part) for part in values_CV.split(STATS_CHUNK_ROWS)])


def _logit_grads(
    logps_CV: Tensor, lse_C: Tensor, targets_C: Tensor, grad_C: Tensor, transform: LogitTransform
) -> Tensor:
    """Return d (sum of grad x logp) / d (logits before the transform), [C, V], in the memory of the log-softmax."""
    transformed_CV = logps_CV + lse_C[:, None] if transform.softcap is not None else logps_CV
    # d logp / d logits = onehot(target) - softmax
    grad_CV = logps_CV.exp_().mul_(-grad_C[:, None])
    grad_CV[torch.arange(len(grad_CV), device=grad_CV.device), targets_C] += grad_C
    return transform.backward(transformed_CV, grad_CV)


class CompletionHead(nn.Module):
    """A replacement of a model's output embedding with the same parameters that outputs log-probs of given tokens."""

    def __init__(self, output_embedding: nn.Module, chunk_tokens: int | None) -> None:
        """Share (not copy) the weight and bias of `output_embedding`, so that names and ties stay as they were.

        `chunk_tokens` is the number of tokens whose logits are in memory at a time; None means `default_chunk_tokens`.
        Raises ModelError if `output_embedding` has no weight of its own, or more weights than that.
        """
        super().__init__()
        weight, bias = getattr(output_embedding, "weight", None), getattr(output_embedding, "bias", None)
        if not isinstance(weight, nn.Parameter):
            raise ModelError(
                f"the output embedding is a {type(output_embedding).__name__} without a weight of its own, and only "
                "a linear head can be trained; leave it out of lora_target_modules and of quantisation"
            )
        others = [name for name, _ in output_embedding.named_parameters() if name not in ("weight", "bias")]
        if others:
            raise ModelError(
                f"the output embedding, a {type(output_embedding).__name__}, has {', '.join(others)} beside its weight "
                "and bias, which would be neither trained nor exported; choose another model"
            )
        self.weight = weight
        self.bias: nn.Parameter | None = bias
        self.transform = LogitTransform()
        """What the model does to its logits after this head."""
        self._replaced = [output_embedding]  # in a list, so that it is no child of this module
        self._chunk_tokens = chunk_tokens

    @property
    def is_more_than_a_matrix(self) -> bool:
        """Whether the output embedding that this head replaces has a forward of its own."""
        return type(self._replaced[0]).forward is not nn.Linear.forward

    @property
    def vocabulary(self) -> int:
        """Number of entries of the vocabulary, also while ZeRO-3 keeps the weight elsewhere."""
        return int(getattr(self.weight, "ds_shape", self.weight.shape)[0])

    @property
    def chunk_tokens(self) -> int:
        """Number of tokens whose logits are in memory at a time."""
        return self._chunk_tokens or default_chunk_tokens(self.weight.device, self.weight.shape[0])

    def forward(
        self,
        hidden_RTH: Tensor,
        predictors_N: Tensor | None = None,
        targets_N: Tensor | None = None,
        request: TokenStatsRequest = LOGPS_ONLY,
    ) -> tuple[Tensor, ...] | Tensor:
        """Return the [N] fields of `TokenLogps`, as a tuple: hooks of ZeRO-3 only look into tuples.

        Without predictors and targets, as the model's own forward calls it, the output embedding that it replaces
        computes its logits [R, T, V], by its own code: it may be more than a matrix.
        """
        if predictors_N is None or targets_N is None:
            logits: Tensor = self._replaced[0](hidden_RTH.to(self.weight.device))
            return logits
        hidden_NH = hidden_RTH.reshape(-1, hidden_RTH.shape[-1])[predictors_N]
        outputs: tuple[Tensor, ...] = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]
            hidden_NH, self.weight, self.bias, targets_N, self, request
        )
        return outputs
