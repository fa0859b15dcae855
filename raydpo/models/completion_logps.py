"""The module that wraps a policy or reference model: it maps a packed micro-batch to the log-probs of its targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.batching.micro_batch import MicroBatch
from raydpo.blocks.schema import IntArray
from raydpo.errors import ModelError
from raydpo.models.attention.padded import row_lengths
from raydpo.models.device import to_device
from raydpo.models.head import LOGPS_ONLY, CompletionHead, TokenStatsRequest
from raydpo.models.images.inputs import ImageInputs
from raydpo.models.images.reader import Arrays
from raydpo.models.inputs import BodyInputs, packed_inputs, padded_inputs
from raydpo.models.logit_transform import fit_transform, probe_logits
from raydpo.models.own_forward import OwnForward, logits_of, set_own_attention
from raydpo.models.rope_rows import use_own_lengths
from raydpo.models.router import RouterLogits, RouterLoss
from raydpo.models.seq2seq import is_encoder_decoder, seq2seq_inputs, shift_of


@dataclass(frozen=True)
class PlainRows:
    """Sequences of one length for the model's own forward, which then needs no mask."""

    input_ids: IntArray
    """[R, T]: token ids."""
    labels: IntArray | None = None
    """[R, L]: token ids of completions of equal length, for an encoder-decoder that reads `input_ids` as prompts."""


class CompletionLogps(nn.Module):
    """A causal language model, with or without a LoRA adapter, whose forward returns per-token log-probs."""

    def __init__(
        self,
        model: nn.Module,
        *,
        shares: bool,
        chunk_tokens: int | None = None,
        router_loss: RouterLoss | None = None,
        images: Callable[[str], Arrays] | None = None,
    ) -> None:
        """Replace the model's output embedding by a `CompletionHead`; the model cannot generate text afterwards.

        `shares` states that the model was loaded with one of the attention functions of `models.attention` and
        therefore takes packed rows; otherwise each completion gets a padded row of its own. `chunk_tokens` is passed to
        the head. `images` reads what the processor made of an image, by its digest; None where there are none. Raises
        ModelError if the model's output embedding is not separate from its body.
        """
        super().__init__()
        self.model = model
        self._shares = shares
        self._router_loss = router_loss
        head = CompletionHead(self.causal_lm.get_output_embeddings(), chunk_tokens)
        self.causal_lm.set_output_embeddings(head)
        self._own = OwnForward.of(self.causal_lm, head)
        self._shift = shift_of(self.causal_lm) if self.is_encoder_decoder else None
        self._row_lengths = None if self.is_encoder_decoder else use_own_lengths(self.causal_lm)
        self._probed = False
        self.learns_transform = False
        """Whether what the model does to its logits after the head depends on a weight that is not frozen."""
        self._images = images
        self._image_inputs: ImageInputs | None = None

    @property
    def shares(self) -> bool:
        """Whether a forward takes packed rows, in which completions share their prompt."""
        return self._shares

    def take_padded_rows(self) -> None:
        """Take a padded row per completion from now on, with the attention that the model has by itself."""
        self._shares = False
        set_own_attention(self.causal_lm)

    @property
    def head_is_more_than_a_matrix(self) -> bool:
        """Whether the output embedding that the head replaces has a forward of its own."""
        return self._head.is_more_than_a_matrix

    @property
    def vocabulary(self) -> int:
        """Number of entries of the output embedding."""
        return self._head.vocabulary

    @property
    def causal_lm(self) -> Any:
        """The transformers model, without the adapter that may wrap it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        self, micro_batch: MicroBatch | PlainRows, request: TokenStatsRequest = LOGPS_ONLY
    ) -> tuple[Tensor, ...]:
        """Return the fields of `TokenLogps` for the N targets, as a tuple: hooks of ZeRO-3 only look into tuples.

        For `PlainRows`, return the logits [R, T, V] of the model's own forward alone. The first forward finds out what
        the model does to its logits after the head; it raises ModelError where that cannot be computed here.
        """
        head = self._head
        # The two differ if the model is spread over several devices.
        device, last = self.causal_lm.get_input_embeddings().weight.device, head.weight.device
        if isinstance(micro_batch, PlainRows):
            if self._row_lengths:
                self._row_lengths.set(None)
            return (self._own_logits(micro_batch, device),)
        inputs = self._inputs(micro_batch, device)
        if any(micro_batch.images) or micro_batch.spare_image:
            inputs = self._with_images(inputs, micro_batch, device)
        if self._row_lengths:
            self._row_lengths.set(None if self._shares else row_lengths(micro_batch))
        with inputs.encoding:
            hidden, router_logits = self._hidden(inputs.arguments)
        hidden = hidden.to(last)
        targets = to_device(micro_batch.targets, last)
        outputs: tuple[Tensor, ...] = head(hidden, to_device(inputs.predictors, last), targets, request)
        loss = hidden.new_zeros(())
        if self._router_loss:
            loss = self._router_loss(router_logits, to_device(inputs.multiplicity, last))
        return *outputs, loss

    def _with_images(self, inputs: BodyInputs, micro_batch: MicroBatch, device: torch.device) -> BodyInputs:
        """Return the inputs with the images of the micro-batch. Raises ModelError if the model takes none."""
        if self._image_inputs is None:
            if self._images is None:
                raise ModelError(
                    f"{type(self.causal_lm).__name__} takes no images, and pairs have some; choose a vision-language "
                    "model, or leave the images out"
                )
            self._image_inputs = ImageInputs(self.causal_lm, self._images)
        return self._image_inputs.add(inputs, micro_batch, device, packed=self._shares)

    def _inputs(self, micro_batch: MicroBatch, device: torch.device) -> BodyInputs:
        if self._shift is not None:
            return seq2seq_inputs(micro_batch, device, self.causal_lm, self._shift)
        return packed_inputs(micro_batch, device) if self._shares else padded_inputs(micro_batch, device)

    def _own_logits(self, rows: PlainRows, device: torch.device) -> Tensor:
        arguments = {"input_ids": to_device(rows.input_ids, device)}
        if rows.labels is not None:
            arguments["labels"] = to_device(rows.labels, device)  # which the model shifts itself
        return self._own.logits(arguments)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return is_encoder_decoder(self.causal_lm.config)

    @property
    def _head(self) -> CompletionHead:
        head: CompletionHead = self.causal_lm.get_output_embeddings()
        return head

    def _hidden(self, arguments: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return the input [R, T, H] of the head, and the router logits of each layer if their loss is used."""
        with RouterLogits(self.causal_lm.base_model if self._router_loss else None) as router:
            if self._probed:
                return self._own.hidden(arguments)[0], router.logits
            probe = probe_logits(self._head.vocabulary, self._head.weight.device)
            hidden, output = self._own.hidden(arguments, probe)
        found = logits_of(output)
        self.learns_transform = found.requires_grad
        self._head.transform = fit_transform(probe, found, type(self.causal_lm).__name__)
        self._probed = True
        return hidden, router.logits


def completion_sums(token_values: Tensor, completion: Tensor, rows: int) -> Tensor:
    """Return the sum [rows] of per-token values [M] over each of `rows` completions, in the dtype of the values.

    `completion` [M] is the index of each token's completion.
    """
    return token_values.new_zeros(rows).index_add(0, completion, token_values)
