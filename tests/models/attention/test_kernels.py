"""Each attention backend on a packed row, compared with plain attention on every sequence separately."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydpo.batching.micro_batch import Layout
from raydpo.errors import ModelError
from raydpo.models.attention import kernels
from raydpo.models.attention.kernels import flex, sdpa, varlen
from raydpo.models.attention.segments import Segments

CPU = torch.device("cpu")
MODULE = nn.Module()
# Three completions of a prompt of 9 tokens, one of a prompt of 4, and a prompt that pads the row.
LAYOUT = Layout(
    prompts=((0, 9), (23, 27), (30, 32)),
    completions=((9, 14, 0), (14, 15, 0), (15, 23, 0), (27, 30, 1)),
)
TOKENS = 32
HEADS, SHARED_HEADS, SIZE = 4, 2, 8


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Return [heads, tokens, size] for one sequence, computed from the definition of attention."""
    repeats = len(q) // len(k)
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = torch.einsum("hqd,hkd->hqk", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])[None, :] + k.shape[1] - q.shape[1]
    hidden = (distance < 0) | (distance >= (window or k.shape[1]))
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ v


def plain_rows(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Return [1, T, H, D]: plain attention on each prompt, and on each completion together with its prompt."""
    rows = torch.zeros(1, TOKENS, q.shape[1], v.shape[3])
    plain_options = {
        "window": options.get("sliding_window"),
        "softcap": options.get("softcap"),
        "scale": options["scaling"],
    }
    for start, stop in LAYOUT.prompts:
        prompt_output = plain_attention(*(tensor[0, :, start:stop] for tensor in (q, k, v)), **plain_options)
        rows[0, start:stop] = prompt_output.transpose(0, 1)
    for start, stop, prompt in LAYOUT.completions:
        index = [*range(*LAYOUT.prompts[prompt]), *range(start, stop)]
        sequence_output = plain_attention(*(tensor[0][:, index] for tensor in (q, k, v)), **plain_options)
        rows[0, start:stop] = sequence_output.transpose(0, 1)[start - stop :]
    return rows


def varlen_as_documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Compute `varlen_attn` as torch documents it, sequence by sequence; return [queries, H, D]."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert (int(cu_seq_q[-1]), int(cu_seq_k[-1])) == (len(query), len(key))
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    left, right = window_size
    assert right == 0  # causal: the last query is aligned with the last key
    outputs = []
    for row in range(len(cu_seq_q) - 1):
        q_rows, k_rows = (slice(int(cu[row]), int(cu[row + 1])) for cu in (cu_seq_q, cu_seq_k))
        q, k, v = (part.transpose(0, 1) for part in (query[q_rows], key[k_rows], value[k_rows]))
        window = None if left < 0 else left + 1  # a query sees `left` keys before its own
        outputs.append(plain_attention(q, k, v, scale, window, None).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def documented_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace torch's varlen kernel, which needs a GPU, by an implementation of its documentation."""
    monkeypatch.setattr(kernels, "varlen_kernel", lambda query, value: varlen_as_documented)


def tensors(shared_heads: int, requires_grad: bool = True) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    heads = (HEADS, shared_heads, shared_heads)
    # In memory as projections return them, [1, T, H, D], viewed as [1, H, T, D].
    return [
        torch.randn(1, TOKENS, count, SIZE, generator=draw).transpose(1, 2).requires_grad_(requires_grad)
        for count in heads
    ]


def assert_same_with_gradients(backend: Callable[..., Any], shared_heads: int, **options: Any) -> None:
    inputs = tensors(shared_heads)
    found, weights = backend(MODULE, *inputs, None, segments=Segments(LAYOUT, CPU), **options)
    expected = plain_rows(*inputs, **options)
    assert weights is None
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, inputs, direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, direction))


@pytest.mark.parametrize("shared_heads", [HEADS, SHARED_HEADS])
@pytest.mark.parametrize("window", [None, 1, 3, 12, 17, 100])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_sdpa_matches_plain_attention(shared_heads: int, window: int | None, softcap: float | None) -> None:
    assert_same_with_gradients(sdpa, shared_heads, scaling=0.3, sliding_window=window, softcap=softcap, dropout=0.0)


def test_sdpa_adds_sinks_to_the_softmax() -> None:
    """Check sinks: a sink is a key with value zero and a score of its own that each query sees."""
    q, k, v = tensors(HEADS)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    plain, _ = sdpa(MODULE, q, k, v, None, segments=Segments(LAYOUT, CPU), scaling=0.3)
    found, _ = sdpa(MODULE, q, k, v, None, segments=Segments(LAYOUT, CPU), scaling=0.3, s_aux=sinks)
    # The first token of a prompt sees only itself: its weight is 1, and with a sink the sigmoid of the difference.
    score = (q[0, :, 0] * k[0, :, 0]).sum(-1) * 0.3
    torch.testing.assert_close(found[0, 0], plain[0, 0] * torch.sigmoid(score - sinks)[:, None])


@pytest.mark.usefixtures("documented_varlen")
@pytest.mark.parametrize("shared_heads", [HEADS, SHARED_HEADS])
@pytest.mark.parametrize("window", [None, 1, 3, 12, 17, 100])
def test_varlen_matches_plain_attention(shared_heads: int, window: int | None) -> None:
    assert_same_with_gradients(varlen, shared_heads, scaling=0.3, sliding_window=window)


@pytest.mark.parametrize("shared_heads", [HEADS, SHARED_HEADS])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (12, 0.7)])
def test_flex_forward_matches_plain_attention(shared_heads: int, window: int | None, softcap: float | None) -> None:
    inputs = tensors(shared_heads, requires_grad=False)
    options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap}
    found, _ = flex(MODULE, *inputs, None, segments=Segments(LAYOUT, CPU), **options)
    torch.testing.assert_close(found, plain_rows(*inputs, **options))


@pytest.mark.parametrize("backend", [sdpa, varlen, flex])
@pytest.mark.parametrize("window", [None, 2, 5])
def test_the_tokens_of_an_image_see_each_other(backend: Callable[..., Any], window: int | None) -> None:
    """Check a block of tokens 2 to 5 of the first prompt: only their own output differs from that without a block.

    A window hides what is too far to the left, also within the block.
    """
    q, k, v = tensors(HEADS)
    plain = plain_rows(q, k, v, scaling=0.3, sliding_window=window)
    found, _ = backend(
        MODULE, q, k, v, None, segments=Segments(LAYOUT, CPU, ((2, 6),)), scaling=0.3, sliding_window=window
    )
    torch.testing.assert_close(found[0, :2], plain[0, :2])
    torch.testing.assert_close(found[0, 6:], plain[0, 6:])
    for token in range(2, 6):
        seen = [key for key in range(6) if key > token - (window or 6)]
        scores = torch.einsum("hd,hkd->hk", q[0, :, token], k[0][:, seen]) * 0.3
        torch.testing.assert_close(found[0, token], torch.einsum("hk,hkd->hd", scores.softmax(-1), v[0][:, seen]))


def test_varlen_without_a_gpu_is_refused_with_a_remedy() -> None:
    inputs = tensors(HEADS)
    with pytest.raises(ModelError, match=r"needs an Ampere GPU.*cpu device.*attn_implementation=sdpa"):
        varlen(MODULE, *inputs, None, segments=Segments(LAYOUT, CPU))


@pytest.mark.parametrize(
    ("backend", "option", "remedy"),
    [
        (varlen, {"softcap": 30.0}, "attn_implementation=sdpa"),
        (varlen, {"s_aux": torch.zeros(HEADS)}, "attn_implementation=sdpa"),
        (varlen, {"dropout": 0.1}, "attn_implementation=sdpa"),
        (flex, {"s_aux": torch.zeros(HEADS)}, "attn_implementation=sdpa"),
        (flex, {"dropout": 0.1}, "attn_implementation=sdpa"),
        (sdpa, {"position_bias": torch.zeros(1)}, "share_prompts=false"),
        (sdpa, {"is_causal": False}, "share_prompts=false"),
    ],
)
def test_options_that_a_backend_does_not_support_are_refused(
    backend: Callable[..., Any], option: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(option))}.*set {remedy}"):
        backend(MODULE, *tensors(HEADS), None, segments=Segments(LAYOUT, CPU), **option)


def test_a_mask_or_a_row_of_another_length_is_refused() -> None:
    q, k, v = tensors(HEADS)
    segments = Segments(LAYOUT, CPU)
    with pytest.raises(ModelError, match="a mask"):
        sdpa(MODULE, q, k, v, torch.ones(1, 1, TOKENS, TOKENS), segments=segments)
    with pytest.raises(ModelError, match="row of 32 tokens"):
        sdpa(MODULE, *(tensor[:, :, 1:] for tensor in (q, k, v)), None, segments=segments)
