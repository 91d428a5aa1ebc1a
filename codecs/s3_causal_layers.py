"""The encoder of a causal S3 tokenizer: convolutions that look back, attention to chunks, whole or chunk by chunk."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.codecs.s3_layers import rotated, rotations
from speechkit.nn.masks import check_context, context_mask, valid_mask
from speechkit.nn.window import Window, WindowState
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push, where

STYLE = "chunked_limited"


class CausalConvolution(nn.Module):
    """A convolution of a frame and the two before it, which shortens the sequence by its stride, and GELU."""

    def __init__(self, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.window = Window(3, stride, mode="zeros", lookahead=0)
        self.chunk, self.first = self.window.chunk, self.window.first
        self.stride, self.lookahead = stride, self.window.lookahead
        self.conv = nn.Conv1d(in_dim, out_dim, 3, stride=stride)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dim), zero after each row's end -> (batch, ceil(frames / stride), dim')."""
        counts = self.window.counts(lengths)
        y = self.conv(self.window.whole(x.transpose(1, 2), lengths))[..., : -(-x.shape[1] // self.stride)]
        return self._ended(y, counts), counts

    def _ended(self, y: Tensor, counts: Tensor) -> Tensor:
        return F.gelu(y).transpose(1, 2) * valid_mask(counts, y.shape[2])[..., None]

    def init_state(self, batch: int) -> WindowState:
        """State of `batch` streams that have not begun."""
        return self.window.init_state(self.conv.weight, batch, self.conv.in_channels)

    def step(self, x: Chunk, state: WindowState) -> tuple[Chunk, WindowState]:
        """(batch, k * stride, dim) -> (batch, k, dim')."""
        seen, count, last, new = self.window.step(x, state)
        return Chunk(self._ended(self.conv(seen), count), count, last), new


class View(NamedTuple):
    """What all blocks need to know of the steps that are new and of those that they see."""

    valid: Tensor  # (batch, new, 1) bool
    bias: Tensor  # (batch, 1, new, seen) added to scores: nothing where a step is seen
    rotation: tuple[Tensor, Tensor]  # (seen, head dim) cosine and sine; the new steps are the last of them


class Past(NamedTuple):
    """What a block keeps of the steps before."""

    memory: Tensor  # (batch, left, 2 * dim) keys, which are not turned yet, and values
    values: Tensor  # (batch, kernel - 1, dim) that the memory of values still covers


class CausalAttention(nn.Module):
    """As `s3_layers.Attention`, over a few steps and what is kept of those before; its memory looks back alone."""

    def __init__(self, dim: int, heads: int, memory: int) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(f"dim must be an even multiple of heads, got {dim} and {heads}")
        if memory < 1:
            raise ValueError(f"memory must be at least one step, got {memory}")
        self.heads, self.kernel = heads, memory
        self.query, self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.memory = nn.Conv1d(dim, dim, memory, groups=dim, bias=False)

    def forward(self, x: Tensor, view: View, past: Past) -> tuple[Tensor, Past]:
        """(batch, new, dim) -> the same, and what the steps after these see."""
        new = x.shape[1]
        value = self.value(x) * view.valid
        memory = torch.cat([past.memory, torch.cat([self.key(x), value], dim=2)], dim=1)
        keys, values = memory.chunk(2, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), keys, values))
        cosine, sine = view.rotation
        q, k = rotated(q, (cosine[-new:], sine[-new:])), rotated(k, (cosine, sine))
        y = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=view.bias).transpose(1, 2).flatten(2))
        covered = torch.cat([past.values, value], dim=1)
        y = y + (self.memory(covered.transpose(1, 2)).transpose(1, 2) + value) * view.valid
        return y, Past(memory[:, new:], covered[:, new:])


class CausalBlock(nn.Module):
    """Attention and two linear layers, each normalised before and added to what came in."""

    def __init__(self, dim: int, heads: int, inner: int, memory: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CausalAttention(dim, heads, memory)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, view: View, past: Past) -> tuple[Tensor, Past]:
        """(batch, new, dim) -> the same, and what the steps after these see."""
        y, new = self.attention(self.attention_norm(x), view, past)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), new


class CausalS3Encoder(nn.Module):
    """Mel frames to the vectors that become tokens, from a limited past and the chunk that a vector lies in.

    Args:
        mels: channels of a frame.
        dim: of the vectors.
        heads: of attention.
        layers: blocks.
        strides: of the two convolutions.
        inner: channels between the linear layers, four times `dim` where it is None.
        memory: steps of the memory of values, the last of them a vector's own.
        context: left and right in vectors: attention sees a vector's own chunk of ``right + 1`` and ``left`` before it.
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
        context: Sequence[int] = (100, 9),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(strides) != 2 or min(strides) < 1:
            raise ValueError(f"strides must be two positive numbers, got {list(strides)}")
        if len(context) != 2 or min(context) < 0:
            raise ValueError(f"a stream's context must be limited, got {list(context)}: name left and right in vectors")
        check_context((context[0], context[1]), STYLE)
        self.mels, self.dim, self.head_dim, self.stride = mels, dim, dim // heads, prod(strides)
        self.context = (context[0], context[1])
        self.stem = nn.ModuleList([CausalConvolution(mels, dim, strides[0]), CausalConvolution(dim, dim, strides[1])])
        self.blocks = nn.ModuleList(CausalBlock(dim, heads, inner or 4 * dim, memory, dropout) for _ in range(layers))
        self.memory = memory

    def lengths(self, frames: Tensor) -> Tensor:
        """(batch,) frames -> (batch,) vectors."""
        for part in self.stem:
            frames = cast(CausalConvolution, part).window.counts(frames)
        return frames

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, mels), (batch,) -> (batch, time, dim), zero after each row's valid ones, (batch,)."""
        for part in self.stem:
            x, lengths = part(x, lengths)
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # what blocks add up is not rounded after each of them
        begin = torch.zeros_like(lengths)
        x, _ = self.heard(x, self.view(x, begin, lengths, 0), self.past(len(x), 0))
        return x * valid_mask(lengths, x.shape[1])[..., None], lengths

    def view(self, x: Tensor, begin: Tensor, end: Tensor, before: int) -> View:
        """Of steps (batch, new, dim) that begin at step `begin` of their rows, of rows that end at `end`: (batch,).

        Args:
            before: how many of the steps before are kept.
        """
        at = torch.arange(-before, x.shape[1], device=x.device)
        key = begin[:, None] + at
        query = key[:, before:]
        seen = context_mask(query, key, self.context, STYLE) & ((key >= 0) & (key < end[:, None]))[:, None]
        lowest = torch.finfo(x.dtype).min / 2  # not infinite after rounding: steps behind the end see nothing
        bias = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, lowest)
        # Rotation tells distances alone: counted from what is kept, it is as exact after hours as at the start.
        return View(
            (query < end[:, None])[..., None], bias[:, None], rotations(len(at), self.head_dim, x, torch.double)
        )

    def past(self, batch: int, left: int) -> tuple[Past, ...]:
        """Of every block, of rows that have not begun, with so many steps kept."""
        zeros = cast(CausalConvolution, self.stem[0]).conv.weight.new_zeros
        return tuple(
            Past(zeros(batch, left, 2 * self.dim), zeros(batch, self.memory - 1, self.dim)) for _ in self.blocks
        )

    def heard(self, x: Tensor, view: View, past: Sequence[Past]) -> tuple[Tensor, tuple[Past, ...]]:
        """New steps (batch, new, dim) through all blocks, and what each keeps of them."""
        kept = []
        for block, old in zip(self.blocks, past, strict=True):
            x, new = block(x, view, old)
            kept.append(new)
        return x, tuple(kept)

    def parts(self, chunks: int = 1) -> list[Any]:
        """Streaming modules from frames to vectors, so many of attention's chunks a call."""
        return [*self.stem, CausalS3Stream(self, chunks)]

    def streaming(self, chunks: int = 1) -> Chain:
        """Frames (batch, time, mels) to vectors (batch, time', dim)."""
        return Chain(*self.parts(chunks))


class BlocksState(NamedTuple):
    """Of all blocks, and the steps that wait for their chunk."""

    pending: Tensor  # (batch, chunk - 1, dim)
    waiting: Tensor  # (batch,) int64 valid entries of `pending`
    steps: Tensor  # (batch,) int64 steps that went through the blocks
    past: tuple[Past, ...]


class CausalS3Stream:
    """The blocks of a `CausalS3Encoder`, some chunks a call."""

    stride = 1
    lookahead = 0

    def __init__(self, encoder: CausalS3Encoder, chunks: int = 1) -> None:
        self.encoder = encoder
        self.chunk = self.first = chunks * (encoder.context[1] + 1)

    def init_state(self, batch: int) -> BlocksState:
        """State of `batch` streams that have not begun."""
        past = self.encoder.past(batch, self.encoder.context[0])
        count = torch.zeros(batch, dtype=torch.int64, device=past[0].memory.device if past else None)
        pending = cast(CausalConvolution, self.encoder.stem[0]).conv.weight.new_zeros(
            batch, self.chunk - 1, self.encoder.dim
        )
        return BlocksState(pending, count, count.clone(), past)

    def step(self, x: Chunk, state: BlocksState) -> tuple[Chunk, BlocksState]:
        """(batch, chunk, dim) -> the same shape."""
        check_room(x, self.chunk)
        queue = queue_push(state.pending, state.waiting, x)
        waiting = state.waiting + x.lengths
        taken = torch.where(x.last | (waiting >= self.chunk), waiting.clamp(max=self.chunk), 0)
        y = queue_pop(queue, torch.zeros_like(taken), self.chunk)
        view = self.encoder.view(y, state.steps, state.steps + taken, self.encoder.context[0])
        y, past = self.encoder.heard(y, view, state.past)
        past = where(taken > 0, past, state.past)
        new = BlocksState(queue_pop(queue, taken, self.chunk - 1), waiting - taken, state.steps + taken, past)
        return Chunk(y * view.valid, taken, x.last & (new.waiting == 0)), new
