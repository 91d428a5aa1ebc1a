"""Self-attention with a memory (Gao et al. 2020, SAN-M): attention, and a convolution over the values beside it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.attention import attended
from speechkit.streaming.state import queue_pop

EPSILON = 1e-12  # of the normalisations, as published


class Memory(nn.Module):
    """A depthwise convolution over time that is added to its input (Zhang et al. 2018, DFSMN); nothing outside counts.

    Args:
        dim: channels.
        kernel: taps.
        shift: taps that lie earlier than they would around the input; half the kernel makes it causal.
    """

    def __init__(self, dim: int, kernel: int, shift: int = 0) -> None:
        super().__init__()
        if kernel < 1 or shift < 0:
            raise ValueError(f"a memory has at least one tap and no shift under 0, got {kernel} and {shift}")
        self.left = (kernel - 1) // 2 + shift
        self.right = kernel - 1 - self.left
        if self.right < 0:
            raise ValueError(f"a kernel of {kernel} taps cannot lie {shift} earlier")
        self.conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)

    def forward(self, x: Tensor, valid: Tensor, left: Tensor | None = None) -> Tensor:
        """(batch, time, dim), (batch, time) bool -> the same shape, zero where it is not valid.

        A causal memory may be given what was before, (batch, kernel - 1, dim).
        """
        x = x * valid[..., None]
        before = F.pad(x, (0, 0, self.left, 0)) if left is None else torch.cat([left, x], dim=1)
        seen = self.conv(F.pad(before.transpose(1, 2), (0, self.right))).transpose(1, 2)
        return (seen + x) * valid[..., None]

    def kept(self, x: Tensor, counts: Tensor, left: Tensor) -> Tensor:
        """The `left` after the first (batch,) inputs of (batch, time, dim)."""
        return queue_pop(torch.cat([left, x], dim=1), counts, self.left)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """(batch, time, dim) over (batch, keys, dim) -> (batch, time, dim).

    `visible` is (batch, keys) bool, or (batch, time, keys) where not all see the same. What sees nothing gets zeros.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    visible = visible[:, None] if visible.dim() == 2 else visible
    lowest = torch.finfo(query.dtype).min / 2
    bias = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, lowest)[:, None]
    return attended(q, k, v, bias, dropout).transpose(1, 2).flatten(2) * visible.any(2)[..., None]


class SanmAttention(nn.Module):
    """Attention, plus the memory of its values.

    Args:
        in_dim: of the inputs.
        dim: inside and of the outputs.
        heads: of the attention.
        kernel, shift: of the memory.
        dropout: of attention weights.
    """

    def __init__(self, in_dim: int, dim: int, heads: int, kernel: int, shift: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"{dim} dimensions cannot be split among {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(in_dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.memory = Memory(dim, kernel, shift)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, in_dim) -> queries (batch, time, dim); keys and values side by side (batch, time, 2 * dim)."""
        dim = self.out.in_features
        query, made = self.qkv(x).split([dim, 2 * dim], dim=-1)
        return query, made

    def forward(self, query: Tensor, made: Tensor, valid: Tensor, past: "Past | None" = None) -> Tensor:
        """What `project` gave, and (batch, time) bool -> (batch, time, dim). The memory does not see the past."""
        value = made.chunk(2, dim=-1)[1]
        seen, visible = made, valid
        if past is not None:
            seen, visible = torch.cat([past.made, made], dim=1), torch.cat([past.valid, valid], dim=1)
        key, seen_value = seen.chunk(2, dim=-1)
        attended = attend(query, key, seen_value, visible, self.heads, self.dropout if self.training else 0.0)
        found: Tensor = self.out(attended)
        return found + self.memory(value, valid)


class Past(NamedTuple):
    """Keys and values of steps before those at hand."""

    made: Tensor  # (batch, past, 2 * dim), side by side
    valid: Tensor  # (batch, past) bool


class SanmLayer(nn.Module):
    """Normalised attention with memory, then a normalised feed-forward network, each beside what it is given.

    Args:
        in_dim: of the inputs; where it is not `dim`, nothing goes beside the attention.
        dim: inside and of the outputs.
        heads, kernel, shift: as of `SanmAttention`.
        inner: of the feed-forward network.
        dropout: after each part, inside the second, and of attention weights.
    """

    def __init__(
        self, in_dim: int, dim: int, heads: int, inner: int, kernel: int, shift: int = 0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.beside = in_dim == dim
        self.norm1, self.norm2 = nn.LayerNorm(in_dim, EPSILON), nn.LayerNorm(dim, EPSILON)
        self.attention = SanmAttention(in_dim, dim, heads, kernel, shift, dropout)
        self.widen, self.narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor, past: Callable[[Tensor], Past | None] | None = None) -> Tensor:
        """(batch, time, in_dim), (batch, time) bool -> (batch, time, dim).

        `past` gives what lies before the inputs, and is told their own keys and values.
        """
        query, made = self.attention.project(self.norm1(x))
        found = self.dropout(self.attention(query, made, valid, past(made) if past else None))
        x = x + found if self.beside else found
        return x + self.dropout(self.narrow(self.dropout(F.relu(self.widen(self.norm2(x))))))


def positions(first: Tensor, time: int, dim: int) -> Tensor:
    """Sines and cosines, in halves, of positions that begin with `first` (batch,): (batch, time, dim)."""
    half = dim // 2
    rate = torch.exp(torch.arange(half, device=first.device) * (-math.log(10_000.0) / max(1, half - 1)))
    angle = (first[:, None] + torch.arange(time, device=first.device))[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
