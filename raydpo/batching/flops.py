"""How many floating-point operations a forward takes: what balances micro-batches, and what MFU is a share of."""

from dataclasses import dataclass

from raydpo.batching.prefix_tree import PromptTree

PADDED_TO = 8
"""Padded rows have a multiple of this many tokens: matrix units want it, and allocators see fewer shapes."""


def padded_width(longest: int) -> int:
    """Tokens of each row where the longest of a padded batch has `longest`: a multiple of `PADDED_TO`."""
    return -(-longest // PADDED_TO) * PADDED_TO


@dataclass(frozen=True)
class FlopsModel:
    """What the floating-point operations (FLOPs) of a decoder's forward depend on; a multiply-add counts as two.

    For a prompt of P tokens and completions of C and R, in a model of N body parameters, hidden size d (equal to heads
    x head size), L layers and V words, where `token` is 2N, `completion_token` 2dV and `attention` 4dL:

        FLOPs = 2N (P+C+R) + 2dV (C+R) + 4dL [A(P) + (A(P+C) - A(P)) + (A(P+R) - A(P))],  A(n) = n(n+1)/2

    N is without embedding and head, as a look-up costs nothing and the head is counted on completion tokens alone. A
    (query, key) pair costs each head two products of its size: the score, and the sum of values. A(n) are the pairs
    that n tokens in causal order see, so the two completions share the A(P) of their prompt, as they share its tokens.
    Forward and backward together are three times that (`update`), or, with A(n) taken as n²/2,

        6N (P+C+R) + 6dV (C+R) + 6dL [(P+C)² + (P+R)² - P²]

    which is the usual 6N a token (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B), with attention
    halved for the causal mask. Softmax, norms, activations and rotations are left out, as is usual.
    """

    token: float
    """FLOPs of the body for a token, attention between tokens left out: 2 x its active parameters."""
    completion_token: float
    """FLOPs of the head for a token that it scores: 2 x hidden size x words."""
    attention: tuple[tuple[float, int | None], ...]
    """Of the layers that have one window in common: FLOPs of all of them for a (query, key) pair that attention looks
    at, and the window in tokens (the query's own counted; None: no bound)."""

    def forward(self, tree: PromptTree) -> float:
        """FLOPs of a forward of the tree in a packed row: the prompt and each completion once."""
        start = len(tree.prompt)
        shared = self._between(start)
        branches = sum(self._between(start + length) - shared for length in tree.lengths)
        return self.token * tree.tokens + self.completion_token * sum(tree.lengths) + shared + branches

    def forward_padded(self, tree: PromptTree, width: int) -> float:
        """FLOPs of a forward of the tree where each completion has its prompt to itself, in a row of `width` tokens.

        Padding is counted, as it is computed; but the head only scores completion tokens.
        """
        row = self.token * width + self._between(width)
        return row * len(tree.lengths) + self.completion_token * sum(tree.lengths)

    def update(self, *, frozen: bool = False) -> "FlopsModel":
        """The work of forward and backward together, recomputed activations left out.

        The backward of a product of two matrices is two products of the same size, one for each gradient: 3 times the
        forward in all. `frozen` is for weights that do not learn, below an adapter that does: their own gradient is
        not needed, which makes it twice; but attention has no weights and stays at 3. The adapter itself is left out.
        """
        linear = 2 if frozen else 3
        attention = tuple((3 * flops, window) for flops, window in self.attention)
        return FlopsModel(linear * self.token, linear * self.completion_token, attention)

    def _between(self, tokens: int) -> float:
        """FLOPs between the tokens of one causal sequence."""
        return sum(flops * visible(tokens, window) for flops, window in self.attention)


def visible(tokens: int, window: int | None = None) -> int:
    """(query, key) pairs in causal attention over `tokens`, where a query sees itself and the `window` - 1 before."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window
