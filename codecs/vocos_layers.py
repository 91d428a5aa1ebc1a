"""The parts of Vocos' decoder with attention, each over whole sequences or, where causal, frame by frame."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.istft import InverseStft
from speechkit.nn.linear import Linear
from speechkit.nn.masks import complete, ended, valid_mask
from speechkit.nn.precision import unreduced
from speechkit.nn.window import Window, WindowState
from speechkit.streaming.state import Chunk, queue_pop

EPSILON = 1e-6
LOUDEST = 1e2  # of a magnitude


class GroupNorm(nn.Module):
    """Zero mean and unit deviation of groups of channels, over all of a row's frames, or of each frame by itself.

    Args:
        dim: channels.
        groups: of them.
        by_frame: which of the two; only the second can stream.
    """

    def __init__(self, dim: int, groups: int, by_frame: bool) -> None:
        super().__init__()
        self.groups, self.by_frame = groups, by_frame
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time, dim) and (batch,) -> (batch, time, dim); what is behind a row's end counts for nothing."""
        if not self.by_frame and complete(lengths, x.shape[1]):
            return F.group_norm(x.transpose(1, 2), self.groups, self.weight, self.bias, EPSILON).transpose(1, 2)
        grouped = x.unflatten(-1, (self.groups, -1))  # (batch, time, groups, channels)
        if self.by_frame:
            y = F.layer_norm(grouped, grouped.shape[-1:], eps=EPSILON)
        else:
            weight = valid_mask(lengths, x.shape[1])[..., None, None]
            count = (weight.sum(1, keepdim=True) * grouped.shape[-1]).clamp(min=1)
            mean = (grouped * weight).sum((1, 3), keepdim=True) / count
            variance = ((grouped - mean).square() * weight).sum((1, 3), keepdim=True) / count
            y = (grouped - mean) * torch.rsqrt(variance + EPSILON)
        return torch.addcmul(self.bias, y.flatten(-2), self.weight)


class AdaLayerNorm(nn.Module):
    """Layer normalisation with a scale and shift for each of several kinds, of which one is in use."""

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        self.kind = 0
        self.scale, self.shift = nn.Embedding(kinds, dim), nn.Embedding(kinds, dim)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> the same."""
        return F.layer_norm(x, x.shape[-1:], self.scale.weight[self.kind], self.shift.weight[self.kind], EPSILON)


class Layer(nn.Module, ABC):
    """A part of the decoder that sees a window of what comes in, one frame out for each one in."""

    chunk = first = stride = 1

    def __init__(self, window: Window, dim: int) -> None:
        super().__init__()
        self.window, self.dim = window, dim
        self.lookahead = window.lookahead

    @abstractmethod
    def compute(self, seen: Tensor, time: int) -> Tensor:
        """(batch, dim, left + time + right) -> (batch, time, dim')."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, dim) and (batch,) -> (batch, time, dim'), zero after each row's end."""
        return ended(self.compute(self.window.whole(x.transpose(1, 2), lengths), x.shape[1]), lengths), lengths

    def init_state(self, batch: int) -> WindowState:
        """State of `batch` streams that have not begun."""
        return self.window.init_state(next(self.parameters()), batch, self.dim)

    def step(self, x: Chunk, state: WindowState) -> tuple[Chunk, WindowState]:
        """(batch, time, dim) -> (batch, time, dim')."""
        seen, count, last, new = self.window.step(x, state)
        return Chunk(ended(self.compute(seen, x.values.shape[1]), count), count, last), new


class Embed(Layer):
    """The first convolution."""

    def __init__(self, in_dim: int, dim: int, kernel: int, window: Window) -> None:
        super().__init__(window, in_dim)
        self.conv = nn.Conv1d(in_dim, dim, kernel)

    def compute(self, seen: Tensor, time: int) -> Tensor:
        """As `Layer.compute`."""
        return self.conv(seen).transpose(1, 2)


class NormConvolution(nn.Module):
    """Normalised, SiLU, dropped out, convolved, zeros outside."""

    chunk = first = stride = 1

    def __init__(self, dim: int, groups: int, kernel: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.window = Window(kernel, causal=causal, mode="zeros")
        self.lookahead, self.dim = self.window.lookahead, dim
        self.norm = GroupNorm(dim, groups, by_frame=causal)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv1d(dim, dim, kernel)

    def _activated(self, x: Tensor, lengths: Tensor) -> Tensor:
        return ended(self.dropout(F.silu(self.norm(x, lengths))), lengths)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, dim) and (batch,) -> the same shapes."""
        seen = self.window.whole(self._activated(x, lengths).transpose(1, 2), lengths)
        return ended(self.conv(seen).transpose(1, 2), lengths), lengths

    def init_state(self, batch: int) -> WindowState:
        """State of `batch` streams that have not begun."""
        return self.window.init_state(self.conv.weight, batch, self.dim)

    def step(self, x: Chunk, state: WindowState) -> tuple[Chunk, WindowState]:
        """(batch, time, dim) -> the same; only where each frame is normalised by itself."""
        seen, count, last, new = self.window.step(x._replace(values=self._activated(x.values, x.lengths)), state)
        return Chunk(ended(self.conv(seen).transpose(1, 2), count), count, last), new


class ResidualBlock(nn.Module):
    """Two normalised convolutions, and what they were given."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, dim: int, groups: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.first_half = NormConvolution(dim, groups, 3, causal)
        self.second_half = NormConvolution(dim, groups, 3, causal, dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, dim) and (batch,) -> the same shapes."""
        return x + self.second_half(*self.first_half(x, lengths))[0], lengths

    def init_state(self, batch: int) -> tuple[WindowState, WindowState]:
        """State of `batch` streams that have not begun."""
        return self.first_half.init_state(batch), self.second_half.init_state(batch)

    def step(self, x: Chunk, state: tuple[WindowState, WindowState]) -> tuple[Chunk, tuple[WindowState, WindowState]]:
        """(batch, time, dim) -> the same; causal blocks alone, which hold nothing back."""
        inner, first = self.first_half.step(x, state[0])
        inner, second = self.second_half.step(inner, state[1])
        return inner._replace(values=x.values + inner.values), (first, second)


class AttentionState(NamedTuple):
    """Keys and values of the frames before."""

    memory: Tensor  # (batch, left, 2 * dim), the latest last
    frames: Tensor  # (batch,) int64 frames so far


class Attention(nn.Module):
    """One head over all frames, or over each frame's own and `left` before it.

    No position is encoded: the published decoder has none.
    """

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, dim: int, groups: int, left: int | None) -> None:
        super().__init__()
        self.left, self.dim = left, dim
        self.norm = GroupNorm(dim, groups, by_frame=left is not None)
        self.qkv, self.out = Linear(dim, 3 * dim), Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, dim) and (batch,) -> the same shapes."""
        q, k, v = self.qkv(self.norm(x, lengths)).chunk(3, dim=-1)
        if self.left is None and complete(lengths, x.shape[1]):
            return x + self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]), lengths
        valid = valid_mask(lengths, x.shape[1])
        seen = valid[:, None, :].expand(-1, x.shape[1], -1)
        if self.left is not None:
            at = torch.arange(x.shape[1], device=x.device)
            apart = at[:, None] - at
            seen = seen & (apart >= 0) & (apart <= self.left)
        seen = seen | ~valid[:, :, None]  # what lies behind the end looks anywhere, and is dropped
        found = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], seen[:, None])[:, 0]
        return (x + self.out(found)) * valid[..., None], lengths

    def init_state(self, batch: int) -> AttentionState:
        """State of `batch` streams that have not begun."""
        if self.left is None:
            raise ValueError("attention to all frames cannot stream")
        memory = self.out.weight.new_zeros(batch, self.left, 2 * self.dim)
        return AttentionState(memory, torch.zeros(batch, dtype=torch.int64, device=memory.device))

    def step(self, x: Chunk, state: AttentionState) -> tuple[Chunk, AttentionState]:
        """(batch, time, dim) -> the same."""
        room, left = x.values.shape[1], state.memory.shape[1]
        valid = valid_mask(x.lengths, room)
        q, new = self.qkv(self.norm(x.values, x.lengths)).split([self.dim, 2 * self.dim], dim=-1)
        memory = torch.cat([state.memory, new * valid[..., None]], dim=1)
        at = torch.arange(left + room, device=x.lengths.device) - left  # from the first new frame on
        apart = at[left:, None] - at
        seen = (apart >= 0) & (apart <= left) & (at >= -state.frames[:, None])[:, None]
        k, v = memory.chunk(2, dim=-1)
        found = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], seen[:, None])[:, 0]
        kept = AttentionState(queue_pop(memory, x.lengths, left), (state.frames + x.lengths).clamp(max=left))
        return x._replace(values=(x.values + self.out(found)) * valid[..., None]), kept


class Between(nn.Module):
    """The two normalisations between the part with attention and the ConvNeXt blocks."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, dim: int, groups: int, kinds: int, by_frame: bool) -> None:
        super().__init__()
        self.group = GroupNorm(dim, groups, by_frame)
        self.layer = AdaLayerNorm(dim, kinds)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, dim) and (batch,) -> the same shapes."""
        return ended(self.layer(self.group(x, lengths)), lengths), lengths

    def init_state(self, batch: int) -> Tensor:
        """Nothing, in a tensor."""
        return self.group.weight.new_zeros(batch, 0)

    def step(self, x: Chunk, state: Tensor) -> tuple[Chunk, Tensor]:
        """(batch, time, dim) -> the same."""
        return x._replace(values=self.forward(x.values, x.lengths)[0]), state


class ConvNextBlock(Layer):
    """Depthwise convolution, normalisation, two linear layers, scaled; and what it was given (Liu et al. 2022).

    Args:
        dim: channels.
        inner: between the linear layers.
        kinds: embeddings of the normalisation.
        scale: of what is added, at first.
        window: of the depthwise convolution.
    """

    def __init__(self, dim: int, inner: int, kinds: int, scale: float, window: Window) -> None:
        super().__init__(window, dim)
        self.depthwise = nn.Conv1d(dim, dim, window.span, groups=dim)
        self.norm = AdaLayerNorm(dim, kinds)
        self.widen, self.narrow = Linear(dim, inner), Linear(inner, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def compute(self, seen: Tensor, time: int) -> Tensor:
        """As `Layer.compute`."""
        x = self.norm(self.depthwise(seen).transpose(1, 2))
        own = seen[..., self.window.left : self.window.left + time].transpose(1, 2)
        return torch.addcmul(own, self.gamma, self.narrow(F.gelu(self.widen(x))))


class Head(nn.Module):
    """A normalisation, a linear layer that gives magnitude and phase, and the transform to samples."""

    def __init__(self, dim: int, istft: InverseStft) -> None:
        super().__init__()
        self.istft = istft
        self.norm = nn.LayerNorm(dim, EPSILON)
        self.chunk = self.first = self.stride = 1
        self.lookahead = istft.lookahead
        self.out = Linear(dim, istft.n_fft + 2)

    def _spectrum(self, x: Tensor) -> Tensor:
        with unreduced(x):  # a phase of eight bits is noise
            magnitude, phase = self.out(self.norm(x.to(self.norm.weight.dtype))).chunk(2, dim=-1)
            size = magnitude.exp().clamp(max=LOUDEST)
            return torch.cat([size * phase.cos(), size * phase.sin()], dim=-1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dim) and (batch,) -> (batch, frames, hop)."""
        return self.istft(self._spectrum(x), lengths)

    def init_state(self, batch: int) -> Any:
        """State of `batch` streams that have not begun."""
        return self.istft.init_state(batch)

    def step(self, x: Chunk, state: Any) -> tuple[Chunk, Any]:
        """(batch, frames, dim) -> (batch, frames, hop)."""
        return self.istft.step(x._replace(values=self._spectrum(x.values)), state)
