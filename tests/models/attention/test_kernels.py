"""Each backend over a packed row, against plain attention over every sequence by itself."""

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
# Three completions of a prompt of 9, one of a prompt of 4, and a prompt that fills the row.
LAYOUT = Layout(
    prompts=((0, 9), (23, 27), (30, 32)),
    completions=((9, 14, 0), (14, 15, 0), (15, 23, 0), (27, 30, 1)),
)
TOKENS = 32
HEADS, SHARED_HEADS, SIZE = 4, 2, 8


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """[heads, tokens, size] of one sequence, straight from the definition."""
    repeats = len(q) // len(k)
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = torch.einsum("hqd,hkd->hqk", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])[None, :] + k.shape[1] - q.shape[1]
    hidden = (behind < 0) | (behind >= (window or k.shape[1]))
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ v


def expected(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """[1, T, H, D]; each completion with its prompt is attended to by itself, each prompt too."""
    rows = torch.zeros(1, TOKENS, q.shape[1], v.shape[3])
    given = {"window": options.get("sliding_window"), "softcap": options.get("softcap"), "scale": options["scaling"]}
    for start, stop in LAYOUT.prompts:
        of_prompt = plain_attention(*(tensor[0, :, start:stop] for tensor in (q, k, v)), **given)
        rows[0, start:stop] = of_prompt.transpose(0, 1)
    for start, stop, prompt in LAYOUT.completions:
        index = [*range(*LAYOUT.prompts[prompt]), *range(start, stop)]
        of_sequence = plain_attention(*(tensor[0][:, index] for tensor in (q, k, v)), **given)
        rows[0, start:stop] = of_sequence.transpose(0, 1)[start - stop :]
    return rows


def as_documented(
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
    """What torch documents `varlen_attn` to do, sequence by sequence: [queries, H, D]."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert (int(cu_seq_q[-1]), int(cu_seq_k[-1])) == (len(query), len(key))
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    left, right = window_size
    assert right == 0  # causal: the last query stands at the last key
    outputs = []
    for row in range(len(cu_seq_q) - 1):
        of_q, of_k = (slice(int(cu[row]), int(cu[row + 1])) for cu in (cu_seq_q, cu_seq_k))
        q, k, v = (part.transpose(0, 1) for part in (query[of_q], key[of_k], value[of_k]))
        window = None if left < 0 else left + 1  # a query sees `left` keys before its own
        outputs.append(plain_attention(q, k, v, scale, window, None).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def documented_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel runs on GPUs alone; this stands in its place."""
    monkeypatch.setattr(kernels, "varlen_kernel", lambda query, value: as_documented)


def tensors(shared_heads: int, requires_grad: bool = True) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    heads = (HEADS, shared_heads, shared_heads)
    # As projections leave them: [1, T, H, D], seen as [1, H, T, D].
    return [
        torch.randn(1, TOKENS, count, SIZE, generator=draw).transpose(1, 2).requires_grad_(requires_grad)
        for count in heads
    ]


def assert_same_with_gradients(backend: Callable[..., Any], shared_heads: int, **options: Any) -> None:
    inputs = tensors(shared_heads)
    found, weights = backend(MODULE, *inputs, None, segments=Segments(LAYOUT, CPU), **options)
    wanted = expected(*inputs, **options)
    assert weights is None
    torch.testing.assert_close(found, wanted)
    direction = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, inputs, direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, inputs, direction))


@pytest.mark.parametrize("shared_heads", [HEADS, SHARED_HEADS])
@pytest.mark.parametrize("window", [None, 1, 3, 12, 17, 100])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_sdpa(shared_heads: int, window: int | None, softcap: float | None) -> None:
    assert_same_with_gradients(sdpa, shared_heads, scaling=0.3, sliding_window=window, softcap=softcap, dropout=0.0)


def test_sdpa_with_sinks() -> None:
    """A sink is a key of value zero that each query sees, with a score of its own."""
    q, k, v = tensors(HEADS)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    plain, _ = sdpa(MODULE, q, k, v, None, segments=Segments(LAYOUT, CPU), scaling=0.3)
    found, _ = sdpa(MODULE, q, k, v, None, segments=Segments(LAYOUT, CPU), scaling=0.3, s_aux=sinks)
    # The first token of a prompt sees itself alone: its weight is 1, and beside a sink the logistic of the difference.
    score = (q[0, :, 0] * k[0, :, 0]).sum(-1) * 0.3
    torch.testing.assert_close(found[0, 0], plain[0, 0] * torch.sigmoid(score - sinks)[:, None])


@pytest.mark.usefixtures("documented_varlen")
@pytest.mark.parametrize("shared_heads", [HEADS, SHARED_HEADS])
@pytest.mark.parametrize("window", [None, 1, 3, 12, 17, 100])
def test_varlen(shared_heads: int, window: int | None) -> None:
    assert_same_with_gradients(varlen, shared_heads, scaling=0.3, sliding_window=window)


@pytest.mark.parametrize("shared_heads", [HEADS, SHARED_HEADS])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (12, 0.7)])
def test_flex_forward(shared_heads: int, window: int | None, softcap: float | None) -> None:
    inputs = tensors(shared_heads, requires_grad=False)
    options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap}
    found, _ = flex(MODULE, *inputs, None, segments=Segments(LAYOUT, CPU), **options)
    torch.testing.assert_close(found, expected(*inputs, **options))


def test_varlen_says_what_to_set_where_there_is_no_gpu() -> None:
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
def test_what_a_backend_would_leave_out_is_refused(
    backend: Callable[..., Any], option: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(option))}.*set {remedy}"):
        backend(MODULE, *tensors(HEADS), None, segments=Segments(LAYOUT, CPU), **option)


def test_a_mask_or_another_row_is_refused() -> None:
    q, k, v = tensors(HEADS)
    segments = Segments(LAYOUT, CPU)
    with pytest.raises(ModelError, match="a mask"):
        sdpa(MODULE, q, k, v, torch.ones(1, 1, TOKENS, TOKENS), segments=segments)
    with pytest.raises(ModelError, match="row of 32 tokens"):
        sdpa(MODULE, *(tensor[:, :, 1:] for tensor in (q, k, v)), None, segments=segments)
