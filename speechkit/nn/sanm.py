"""Self-attention with a memory (Gao et al. 2020, SAN-M): attention, and a convolution over the values beside it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.left = (kernel - 1) // 2 + shift
        self.right = kernel - 1 - self.left
        if self.right < 0:
            raise ValueError(f"a kernel of {kernel} taps cannot lie {shift} earlier")
        self.conv = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, dim), (batch, time) bool -> the same shape, zero where it is not valid."""
        x = x * valid[..., None]
        seen = self.conv(F.pad(x.transpose(1, 2), (self.left, self.right))).transpose(1, 2)
        return (seen + x) * valid[..., None]


def attend(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """(batch, time, dim) over (batch, keys, dim), of which (batch, keys) bool count -> (batch, time, dim).

    A row in which nothing counts gives zeros.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    lowest = torch.finfo(query.dtype).min / 2
    bias = torch.zeros_like(valid, dtype=query.dtype).masked_fill(~valid, lowest)[:, None, None]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return found.transpose(1, 2).flatten(2) * valid.any(1)[:, None, None]


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
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(in_dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.memory = Memory(dim, kernel, shift)

    def forward(
        self, x: Tensor, valid: Tensor, past: Tensor | None = None, past_valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What comes of (batch, time, in_dim), and its keys and values, side by side (batch, time, 2 * dim).

        Args:
            x: inputs.
            valid: (batch, time) bool.
            past: (batch, past, 2 * dim) keys and values before them; the memory does not see them.
            past_valid: (batch, past) bool.
        """
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        made = torch.cat([key, value], dim=-1)
        counts = valid
        if past is not None and past_valid is not None:
            before = past.chunk(2, dim=-1)
            key, seen = torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)
            counts = torch.cat([past_valid, valid], dim=1)
        else:
            seen = value
        attended = attend(query, key, seen, counts, self.heads, self.dropout if self.training else 0.0)
        return self.out(attended) + self.memory(value, valid), made


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

    def forward(
        self, x: Tensor, valid: Tensor, past: Tensor | None = None, past_valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `SanmAttention.forward`."""
        found, made = self.attention(self.norm1(x), valid, past, past_valid)
        x = (x if self.beside else 0) + self.dropout(found)
        return x + self.dropout(self.narrow(self.dropout(F.relu(self.widen(self.norm2(x)))))), made


def positions(first: Tensor, time: int, dim: int) -> Tensor:
    """Sines and cosines, in halves, of positions that begin with `first` (batch,): (batch, time, dim)."""
    half = dim // 2
    rate = torch.exp(torch.arange(half, device=first.device) * (-math.log(10_000.0) / (half - 1)))
    angle = (first[:, None] + torch.arange(time, device=first.device))[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
