"""The number of floating-point operations of a forward: it balances micro-batches, and MFU is computed from it."""

from dataclasses import dataclass

from raydpo.batching.prefix_tree import PromptTree

PAD_TO_MULTIPLE_OF = 8
"""Padded rows are a multiple of this many tokens wide: matrix units are faster, and allocators see fewer shapes."""


def padded_width(longest: int) -> int:
    """Return the row width, in tokens, of a padded batch whose longest sequence has `longest` tokens.

    It is `longest` rounded up to a multiple of `PAD_TO_MULTIPLE_OF`.
    """
    return -(-longest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF


@dataclass(frozen=True)
class FlopsModel:
    """The floating-point operations (FLOPs) of a decoder's forward, per token and per attention pair.

    A multiply-add counts as two operations. For a prompt of P tokens with completions of C and R tokens, in a model of
    N body parameters, hidden size d (equal to heads x head size), L layers and a vocabulary of V tokens, where `token`
    is 2N, `completion_token` is 2dV and `attention` is 4dL:

        FLOPs = 2N (P+C+R) + 2dV (C+R) + 4dL [A(P) + (A(P+C) - A(P)) + (A(P+R) - A(P))],  A(n) = n(n+1)/2

    N excludes the embedding, as a look-up costs nothing, and the output head, which is counted on completion tokens
    only. Each (query, key) pair costs each attention head two products of the head size: the attention score, and the
    weighted sum of values. A(n) is the number of (query, key) pairs of n tokens under a causal mask; the two
    completions share the A(P) of their prompt, as they share its tokens. Forward and backward together cost three times
    that (`update`), or, with A(n) approximated by n²/2,

        6N (P+C+R) + 6dV (C+R) + 6dL [(P+C)² + (P+R)² - P²]

    which is the usual 6N per token (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B), with attention
    halved for the causal mask. Softmax, norms, activations and rotary embeddings are left out, as is usual.
    """

    token: float
    """FLOPs of the body per token, without attention between tokens: 2 x its active parameters."""
    completion_token: float
    """FLOPs of the output head per completion token: 2 x hidden size x vocabulary size."""
    attention: tuple[tuple[float, int | None], ...]
    """(FLOPs, window) of each group of layers with the same attention window: FLOPs of all layers of the group per
    visible (query, key) pair, and the window in tokens, including the query's own (None: unlimited)."""

    def forward(self, tree: PromptTree) -> float:
        """Return the FLOPs of a forward of the tree in a packed row, with the prompt and each completion once."""
        start = len(tree.prompt)
        shared = self._between(start)
        branches = sum(self._between(start + length) - shared for length in tree.lengths)
        return self.token * tree.tokens + self.completion_token * tree.targets + shared + branches

    def forward_padded(self, tree: PromptTree, width: int) -> float:
        """Return the FLOPs of a forward of the tree with one padded row of `width` tokens per completion.

        Each row repeats the prompt. Padding is counted, as it is computed, but the head runs on completion tokens only.
        """
        row = self.token * width + self._between(width)
        return row * len(tree.lengths) + self.completion_token * tree.targets

    def update(self, *, frozen: bool = False) -> "FlopsModel":
        """Return the model of forward and backward together, without recomputed activations.

        The backward of a product of two matrices is two products of the same size, one per gradient: in total 3 times
        the forward. `frozen` is for frozen weights under a trained adapter: their own gradient is not computed, which
        makes it 2 times; attention has no weights and stays at 3. The adapter itself is left out.
        """
        linear = 2 if frozen else 3
        attention = tuple((3 * flops, window) for flops, window in self.attention)
        return FlopsModel(linear * self.token, linear * self.completion_token, attention)

    def _between(self, tokens: int) -> float:
        """Return the FLOPs of attention between the tokens of one causal sequence."""
        return sum(flops * visible_pairs(tokens, window) for flops, window in self.attention)


def visible_pairs(tokens: int, window: int | None = None) -> int:
    """Return the number of visible (query, key) pairs in causal attention over `tokens` tokens.

    A query sees itself and the `window` - 1 tokens before it; without `window`, all tokens before it.
    """
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window
