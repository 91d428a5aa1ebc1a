"""The encoder of the S3 tokenizers: Whisper's (v1), or with memory and rotary positions (v2, v3)."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask

LONGEST_PERIOD = 10_000.0  # of positions, in steps over two pi


class Surroundings(NamedTuple):
    """What all blocks need to know of where they are."""

    valid: Tensor  # (batch, time, 1) bool
    bias: Tensor  # (batch, 1, 1, time) added to scores: nothing where a key is valid, else all that takes it away
    rotation: tuple[Tensor, Tensor] | None  # (time, head dim) cosine and sine


def sinusoids(rows: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Whisper's table of positions: (rows, dim), sines in the first half and cosines in the second."""
    half = dim // 2
    rate = LONGEST_PERIOD ** (-torch.arange(half, device=device) / max(half - 1, 1))
    angle = torch.arange(rows, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def rotations(time: int, dim: int, like: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary positions (Su et al. 2021), each (time, dim), one half like the other.

    Angles are rounded to `dtype`; to single precision where others did so.
    """
    place = torch.arange(0, dim, 2, device=like.device, dtype=dtype)
    rate = LONGEST_PERIOD ** (-place / dim)
    angle = torch.arange(time, device=like.device)[:, None] * torch.cat([rate, rate])
    return angle.cos().to(like), angle.sin().to(like)


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(batch, heads, time, head dim), turned by halves."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def surroundings(x: Tensor, counts: Tensor, head_dim: int | None) -> Surroundings:
    """Of rows (batch, time, dim) with so many valid steps (batch,), turned where the width of a head is given."""
    valid = valid_mask(counts, x.shape[1])
    lowest = torch.finfo(x.dtype).min / 2  # autocast must not make it infinite: a row may have no valid key
    bias = torch.zeros_like(valid, dtype=x.dtype).masked_fill(~valid, lowest)
    rotation = None if head_dim is None else rotations(x.shape[1], head_dim, x)
    return Surroundings(valid[..., None], bias[:, None, None], rotation)


def _shortened(lengths: Tensor, stride: int) -> Tensor:
    return (lengths - 1).div(stride, rounding_mode="floor") + 1


class Stem(nn.Module):
    """Two convolutions of three frames, which shorten the sequence by their strides."""

    def __init__(self, mels: int, dim: int, strides: Sequence[int]) -> None:
        super().__init__()
        if len(strides) != 2 or min(strides) < 1:
            raise ValueError(f"strides must be two positive numbers, got {list(strides)}")
        self.strides = tuple(strides)
        self.conv1 = nn.Conv1d(mels, dim, 3, stride=self.strides[0], padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=self.strides[1], padding=1)

    def lengths(self, frames: Tensor) -> Tensor:
        """(batch,) frames -> (batch,) steps."""
        return _shortened(_shortened(frames, self.strides[0]), self.strides[1])

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, mels), (batch,) -> (batch, steps, dim)."""
        x = (x * valid_mask(lengths, x.shape[1])[..., None]).transpose(1, 2)
        x = F.gelu(self.conv1(x))
        x = x * valid_mask(_shortened(lengths, self.strides[0]), x.shape[2])[:, None]
        return F.gelu(self.conv2(x)).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over all that is valid, where asked with a memory: a depthwise convolution over the values.

    The memory is that of SAN-M (Gao et al. 2020, section 2.2), the values themselves added.
    """

    def __init__(self, dim: int, heads: int, memory: int) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(f"dim must be an even multiple of heads, got {dim} and {heads}")
        if memory < 0 or (memory and memory % 2 == 0):
            raise ValueError(f"memory must be 0 or an odd number of steps, got {memory}")
        self.heads = heads
        self.query, self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.memory = nn.Conv1d(dim, dim, memory, padding=memory // 2, groups=dim, bias=False) if memory else None

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """(batch, time, dim) -> the same."""
        value = self.value(x)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), self.key(x), value))
        if around.rotation is not None:
            q, k = rotated(q, around.rotation), rotated(k, around.rotation)
        y = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=around.bias).transpose(1, 2).flatten(2))
        if self.memory is None:
            return y
        value = value * around.valid
        return y + (self._remembered(value, self.memory.weight) + value) * around.valid

    @staticmethod
    def _remembered(value: Tensor, weight: Tensor) -> Tensor:
        """(batch, time, dim) as images one line high: laid out by frames, that takes a seventh of `Conv1d`'s time."""
        lines = value.transpose(1, 2)[:, :, None]
        y = F.conv2d(lines, weight[:, :, None], padding=(0, weight.shape[2] // 2), groups=weight.shape[0])
        return y[:, :, 0].transpose(1, 2)


class Block(nn.Module):
    """Attention and two linear layers, each normalised before and added to what came in."""

    def __init__(
        self,
        dim: int,
        heads: int,
        inner: int,
        memory: int,
        epsilons: Sequence[float] = (1e-5, 1e-5),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=epsilons[0])
        self.attention = Attention(dim, heads, memory)
        self.mlp_norm = nn.LayerNorm(dim, eps=epsilons[1])
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """(batch, time, dim) -> the same."""
        x = x + self.dropout(self.attention(self.attention_norm(x), around))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class S3Encoder(nn.Module):
    """Mel frames to the vectors that become tokens; no normalisation follows the last block.

    Args:
        mels: channels of a frame.
        dim: of the vectors.
        heads: of attention.
        layers: blocks.
        strides: of the two convolutions.
        inner: channels between the linear layers, four times `dim` where it is None.
        memory: steps of the memory of values, 0 for none.
        positions: rows of a table that is added; None turns queries and keys instead.
        epsilons: of the normalisations before attention and before the linear layers.
        dropout: of what each half of a block adds, in training.
    """

    def __init__(
        self,
        mels: int = 128,
        dim: int = 1280,
        heads: int = 20,
        layers: int = 6,
        strides: Sequence[int] = (2, 2),
        inner: int | None = None,
        memory: int = 31,
        positions: int | None = None,
        epsilons: Sequence[float] = (1e-5, 1e-5),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(epsilons) != 2:
            raise ValueError(f"epsilons must be two numbers, got {list(epsilons)}")
        self.mels, self.dim, self.head_dim, self.stride = mels, dim, dim // heads, prod(strides)
        self.stem = Stem(mels, dim, strides)
        self.blocks = nn.ModuleList(
            Block(dim, heads, inner or 4 * dim, memory, epsilons, dropout) for _ in range(layers)
        )
        self.register_buffer("positions", None if positions is None else sinusoids(positions, dim))
        self.positions: Tensor | None

    def lengths(self, frames: Tensor) -> Tensor:
        """(batch,) frames -> (batch,) vectors."""
        return self.stem.lengths(frames)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, mels), (batch,) -> (batch, time, dim), zero after each row's valid ones, (batch,)."""
        x, counts = self.stem(x, lengths), self.lengths(lengths)
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # what blocks add up is not rounded after each of them
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        around = surroundings(x, counts, self.head_dim if self.positions is None else None)
        for block in self.blocks:
            x = block(x, around)
        return x * around.valid, counts
