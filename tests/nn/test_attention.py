"""Relative attention is its formula, over the whole sequence and over a cache."""

import math

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.attention import RelativeAttention, attention_bias, relative_positions, relative_shift

DIM, HEADS = 6, 3


def _attention(bias: bool = True) -> RelativeAttention:
    attention = RelativeAttention(DIM, HEADS, bias=bias).double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


def _sinusoids(distance: int) -> Tensor:
    angles = [distance / 10000 ** (2 * i / DIM) for i in range(DIM // 2)]
    return torch.tensor([f(angle) for angle in angles for f in (math.sin, math.cos)], dtype=torch.double)


def _formula(attention: RelativeAttention, x: Tensor, visible: Tensor) -> Tensor:
    """One row (time, dim) under (time, time) bool: Dai et al. 2019, section 3.3, number by number."""
    size = DIM // HEADS
    q, k, v = attention.qkv(x).split(DIM, dim=1)
    rows = []
    for i in range(len(x)):
        seen = [j for j in range(len(x)) if visible[i, j]]
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = []
            for j in seen:
                position = (attention.position.weight @ _sinusoids(i - j))[part]
                content = (q[i, part] + attention.content_bias[head]) @ k[j, part]
                scores.append((content + (q[i, part] + attention.position_bias[head]) @ position) / math.sqrt(size))
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * v[j, part] for weight, j in zip(weights, seen, strict=True)))
        rows.append(attention.out(torch.cat(heads)))
    return torch.stack(rows)


def _visible(batch: int, time: int) -> Tensor:
    """Random masks in which every step sees itself."""
    return (torch.rand(batch, time, time) < 0.5) | torch.eye(time, dtype=torch.bool)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("time", [1, 2, 7])
def test_attention_is_the_formula(time: int, bias: bool) -> None:
    attention, x, visible = _attention(bias), torch.randn(2, time, DIM, dtype=torch.double), _visible(2, time)
    sinusoids = relative_positions(time - 1, 2 * time - 1, DIM, x)
    actual = attention(x, attention_bias(visible, x.dtype), sinusoids)
    expected = torch.stack([_formula(attention, row, mask) for row, mask in zip(x, visible, strict=True)])
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 3])
def test_the_last_queries_over_cached_keys_are_those_of_the_whole(queries: int) -> None:
    attention, x, visible = _attention(), torch.randn(2, 7, DIM, dtype=torch.double), _visible(2, 7)
    bias = attention_bias(visible, x.dtype)
    whole = attention(x, bias, relative_positions(6, 13, DIM, x))
    q, k, v = attention.project(x)
    positions = attention.positions(6, 7 + queries - 1)
    part = attention.attend(q[:, :, -queries:], k, v, positions, bias[:, :, -queries:])
    torch.testing.assert_close(part, whole[:, -queries:])


@pytest.mark.parametrize("spare", [0, 1, 4])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (4, 4), (3, 7), (5, 2)])
def test_the_shift_gives_every_pair_its_distance(queries: int, keys: int, spare: int) -> None:
    """Distances fall; more of them than the pairs need, at the end, change nothing."""
    scores = torch.randn(2, 3, queries, queries + keys - 1 + spare)
    shifted = relative_shift(scores, keys)
    assert shifted.shape == (2, 3, queries, keys)
    for i in range(queries):
        for j in range(keys):
            # The first score is that of the last query and the first key.
            assert torch.equal(shifted[..., i, j], scores[..., i, queries - 1 - i + j])


def test_a_row_with_nothing_to_see_stays_finite() -> None:
    attention, x = _attention(), torch.randn(1, 4, DIM, dtype=torch.double)
    nothing = attention_bias(torch.zeros(1, 4, 4, dtype=torch.bool), x.dtype)
    assert attention(x, nothing, relative_positions(3, 7, DIM, x)).isfinite().all()


def test_heads_must_divide_the_dimension() -> None:
    with pytest.raises(ValueError, match="multiple of heads, got 6 and 4"):
        RelativeAttention(6, 4)
    with pytest.raises(ValueError, match="multiple of heads, got 6 and 0"):
        RelativeAttention(6, 0)
    with pytest.raises(ValueError, match="dropout must be from 0 to 1, got nan"):
        RelativeAttention(6, 3, float("nan"))
