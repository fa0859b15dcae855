"""The number of floating-point operations of an encoder-decoder's forward."""

from dataclasses import dataclass, replace

from raydpo.batching.flops import FlopsModel
from raydpo.batching.prefix_tree import PromptTree


@dataclass(frozen=True)
class Seq2SeqFlopsModel(FlopsModel):
    """The floating-point operations (FLOPs) of an encoder-decoder's forward; those inherited are of the decoder.

    For a prompt of P tokens with completions of C_1, C_2, ... tokens, the encoder computes the prompt once, and every
    (query, key) pair of it. For each completion, the decoder computes its tokens, causal attention between them, the
    keys and values of the prompt in each cross-attention, and attention to the prompt:

        encoder_token P + encoder_pair P² + sum over i of
            token C_i + attention A(C_i) + cross_token P + cross_pair P C_i + completion_token C_i,  A(n) = n(n+1)/2

    with `token` without the weights that `cross_token` counts. What `FlopsModel` leaves out is left out here.
    """

    encoder_token: float
    """FLOPs of the encoder per prompt token, without attention: 2 x its active parameters."""
    encoder_pair: float
    """FLOPs of all encoder layers per (query, key) pair: 4 x width of attention x layers. Local attention counts as
    full."""
    cross_token: float
    """FLOPs per prompt token and completion: 2 x the parameters that make keys and values of the encoder's output."""
    cross_pair: float
    """FLOPs of all decoder layers per pair of a completion token and a prompt token."""

    def forward(self, tree: PromptTree) -> float:
        """Return the FLOPs of a forward of the tree: its prompt once, and each completion once."""
        return self._forward(len(tree.prompt), tree.lengths, tree.targets)

    def forward_padded(self, tree: PromptTree, width: int) -> float:
        """Return the FLOPs of a forward of the tree whose prompt and longest completion are padded to `width` tokens.

        Padding is divided between the two as the tokens are.
        """
        prompt = round(width * len(tree.prompt) / tree.longest)
        return self._forward(prompt, (width - prompt,) * len(tree.lengths), tree.targets)

    def update(self, *, frozen: bool = False) -> "Seq2SeqFlopsModel":
        """Return the model of forward and backward together, as `FlopsModel.update` does."""
        linear = 2 if frozen else 3
        return replace(
            self,
            token=linear * self.token,
            completion_token=linear * self.completion_token,
            attention=tuple((3 * flops, window) for flops, window in self.attention),
            encoder_token=linear * self.encoder_token,
            encoder_pair=3 * self.encoder_pair,
            cross_token=linear * self.cross_token,
            cross_pair=3 * self.cross_pair,
        )

    def _forward(self, prompt: int, completions: tuple[int, ...], targets: int) -> float:
        encoder = self.encoder_token * prompt + self.encoder_pair * prompt**2
        decoder = sum(
            self.token * length + self._between(length) + (self.cross_token + self.cross_pair * length) * prompt
            for length in completions
        )
        return encoder + decoder + self.completion_token * targets
