"""A Conformer in the place of Paraformer's own encoder: its attention chunks are the blocks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.asr.blocks import Blocks, Grid, cut
from speechkit.asr.conformer import ConformerEncoder
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push, where


class PackingState(NamedTuple):
    """Steps that wait until a block is full."""

    pending: Tensor  # (batch, size - 1, dim)
    waiting: Tensor  # (batch,) int64
    begun: Tensor  # (batch,) bool: steps came
    over: Tensor  # (batch,) bool: the last block was given


class Packing:
    """Steps to packed `Blocks` without overlap; the last one has what remains, maybe nothing."""

    def __init__(self, size: int, like: Tensor) -> None:
        self.chunk = self.first = self.stride = size
        self.lookahead = size - 1
        self.like = like  # a tensor of the steps' type, where they are; its last dimension is theirs

    def init_state(self, batch: int) -> PackingState:
        """State of `batch` streams that have not begun."""
        pending = self.like.new_zeros(batch, self.chunk - 1, self.like.shape[-1])
        waiting = torch.zeros(batch, dtype=torch.int64, device=pending.device)
        return PackingState(pending, waiting, waiting > 0, waiting > 0)

    def step(self, x: Chunk, state: PackingState) -> tuple[Chunk, PackingState]:
        """(batch, size, dim) -> (batch, 1, size * dim + 3)."""
        check_room(x, self.chunk)
        queue = queue_push(state.pending, state.waiting, x)
        waiting = state.waiting + x.lengths
        full = waiting >= self.chunk
        ends = x.last & ~full
        begun = state.begun | (x.lengths > 0)
        given = full | (ends & ~state.over & begun)
        end = waiting.clamp(max=self.chunk)
        block = Blocks(queue[:, None, : self.chunk], torch.zeros_like(end)[:, None], end[:, None], ends[:, None])
        taken = torch.where(given, end, 0)
        new = PackingState(queue_pop(queue, taken, self.chunk - 1), waiting - taken, begun, state.over | ends)
        values = block.packed() * given[:, None, None]
        return Chunk(values, given.long(), ends), where((x.lengths > 0) | x.last, new, state)


class ConformerBlocks(nn.Module):
    """A `ConformerEncoder` whose right context is a block, and its left one what a grid looks back at.

    Args:
        encoder: with attention in chunks; it needs no contexts of its own but one.
    """

    def __init__(self, encoder: ConformerEncoder) -> None:
        super().__init__()
        self.encoder, self.dim, self.stride = encoder, encoder.dim, encoder.stride

    def context(self, grid: Grid) -> tuple[int, int]:
        """The encoder's context of a grid; ValueError where its blocks overlap."""
        if grid.left or grid.right:
            raise ValueError(
                f"a Conformer's blocks do not overlap, a grid's left and right must be 0, got {list(grid)}"
            )
        return grid.look_back * grid.size, grid.size - 1

    def forward(self, features: Tensor, lengths: Tensor, compat: str | None = None) -> tuple[Tensor, Tensor]:
        """(batch, frames, n_mels), (batch,) -> (batch, steps, dim), (batch,), with full context."""
        return self.encoder(features, lengths, (-1, -1))

    def blocks(self, features: Tensor, lengths: Tensor, grid: Grid) -> Blocks:
        """All blocks of (batch, frames, n_mels) at once."""
        steps, counts = self.encoder(features, lengths, self.context(grid))
        return cut(steps, counts, grid)

    def at(self, grid: Grid, compat: str | None = None) -> Chain:
        """The encoder as a streaming module: features to packed `Blocks`, one at a time."""
        weight = self.encoder.subsampling.out.weight.detach()
        return Chain(self.encoder.at(self.context(grid)), Packing(grid.size, weight.new_zeros(self.dim)))
