"""The module that wraps a policy or reference model: it maps a packed micro-batch to the log-probs of its targets."""

from typing import Any

from torch import Tensor, nn

from raydpo.batching.micro_batch import MicroBatch
from raydpo.errors import ModelError
from raydpo.models.device import to_device
from raydpo.models.head import LOGPS_ONLY, CompletionHead, LogitTransform, TokenStatsRequest
from raydpo.models.inputs import packed_inputs, padded_inputs
from raydpo.models.router import RouterLoss


class CompletionLogps(nn.Module):
    """A causal language model, with or without a LoRA adapter, whose forward returns per-token log-probs."""

    def __init__(
        self, model: nn.Module, *, shares: bool, chunk_tokens: int | None = None, router_loss: RouterLoss | None = None
    ) -> None:
        """Replace the model's output embedding by a `CompletionHead`; the model cannot generate text afterwards.

        `shares` states that the model was loaded with one of the attention functions of `models.attention` and
        therefore takes packed rows; otherwise each completion gets a padded row of its own. `chunk_tokens` is passed to
        the head. Raises ModelError if the model's output embedding is not separate from its body.
        """
        super().__init__()
        self.model = model
        self._shares = shares
        self._router_loss = router_loss
        transform = LogitTransform.from_config(self.causal_lm.config)
        head = CompletionHead(self.causal_lm.get_output_embeddings(), transform, chunk_tokens)
        self.causal_lm.set_output_embeddings(head)
        if self.causal_lm.base_model is self.causal_lm or self.causal_lm.get_output_embeddings() is not head:
            raise ModelError(
                f"{type(self.causal_lm).__name__} does not separate its body from its output embedding; "
                "choose a decoder model with an `lm_head`"
            )

    @property
    def causal_lm(self) -> Any:
        """The transformers model, without the adapter that may wrap it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(self, micro_batch: MicroBatch, request: TokenStatsRequest = LOGPS_ONLY) -> tuple[Tensor, ...]:
        """Return the fields of `TokenLogps` for the N targets, as a tuple: hooks of ZeRO-3 only look into tuples."""
        head = self.causal_lm.get_output_embeddings()
        # The two differ if the model is spread over several devices.
        device, last = self.causal_lm.get_input_embeddings().weight.device, head.weight.device
        inputs = packed_inputs(micro_batch, device) if self._shares else padded_inputs(micro_batch, device)
        # Requested only if the loss is used; the configs of some models turn router logits on by themselves.
        router = {} if self._router_loss is None else {"output_router_logits": True}
        body = self.causal_lm.base_model(**inputs.arguments, use_cache=False, **router)
        hidden = body.last_hidden_state.to(last)
        targets = to_device(micro_batch.targets, last)
        outputs: tuple[Tensor, ...] = head(hidden, to_device(inputs.predictors, last), targets, request)
        loss = hidden.new_zeros(())
        if self._router_loss:
            loss = self._router_loss(body.router_logits, to_device(inputs.multiplicity, last))
        return *outputs, loss


def completion_sums(token_values: Tensor, completion: Tensor, rows: int) -> Tensor:
    """Return the sum [rows] of per-token values [M] over each of `rows` completions, in the dtype of the values.

    `completion` [M] is the index of each token's completion.
    """
    return token_values.new_zeros(rows).index_add(0, completion, token_values)
