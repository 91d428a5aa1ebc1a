"""The blocks of a grid as they come: what an encoder of overlapping blocks and a packer of steps begin with."""

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.asr.blocks import Blocks, Grid
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push, where


class CutState(NamedTuple):
    """What the next block needs of the past."""

    pending: Tensor  # (batch, left + size + right - 1, dim): steps of earlier blocks, then those that wait
    waiting: Tensor  # (batch,) int64 steps of no block yet
    steps: Tensor  # (batch,) int64 steps that came
    taken: Tensor  # (batch,) int64 steps of blocks
    over: Tensor  # (batch,) bool: the last block was given


class Cutter:
    """Steps of streams to the blocks of a grid, at most one a call; the same as `cut` gives of whole utterances.

    A block is there as soon as its look-ahead is; at the end of a stream comes one with what remains, maybe nothing.

    With ``compat="reference"`` streams begin, and end, as FunASR's do: ``left + right`` rows of zeros that count stand
    in front, and a call that is the stream's last one and completes a block makes it the last one. What comes out then
    depends on how a stream is cut into calls.

    Raises:
        ValueError: the grid is none, or of whole utterances.
    """

    def __init__(self, grid: Grid, compat: str | None = None) -> None:
        if grid.check().whole:
            raise ValueError("a stream needs a grid: this model was trained with full context")
        self.grid, self.compat = grid, compat
        self.chunk = self.first = self.stride = grid.size
        self.lookahead = grid.size - 1 + grid.right

    def init_state(self, batch: int, like: Tensor, dim: int) -> CutState:
        """State of `batch` streams that have not begun, of steps of `dim` numbers of the type of `like`."""
        count = torch.zeros(batch, dtype=torch.int64, device=like.device)
        waiting = count + (self.grid.right if self.compat else 0)
        return CutState(like.new_zeros(batch, self.grid.room - 1, dim), waiting, count, count.clone(), count > 0)

    def step(self, x: Chunk, state: CutState) -> tuple[Blocks, Tensor, CutState]:
        """(batch, size, dim) -> (batch, 1, room, dim) blocks, (batch,) bool which rows have one, and the new state."""
        grid = self.grid
        check_room(x, self.chunk)
        queue = queue_push(state.pending, state.waiting + grid.left, x)
        waiting, steps = state.waiting + x.lengths, state.steps + x.lengths
        seen = grid.size + grid.right
        ends = x.last & (waiting == seen) if self.compat else torch.zeros_like(x.last)
        full = (waiting >= seen) & ~ends
        over = x.last & ~full
        given = full | (over & ~state.over & (steps > 0))
        taken = torch.where(full, grid.size, torch.where(x.last, waiting, 0))
        first = torch.zeros_like(waiting) if self.compat else (grid.left - state.taken).clamp(min=0)
        end = grid.left + waiting.clamp(max=seen)
        block = Blocks(queue[:, : grid.room, :][:, None], first[:, None], end[:, None], over[:, None])
        kept = queue_pop(queue, taken.clamp(max=grid.size), grid.room - 1)
        new = CutState(kept, waiting - taken, steps, state.taken + taken, state.over | over)
        return block, given, where(given | (x.lengths > 0), new, state)


class Packing:
    """Steps to packed `Blocks` as they are."""

    def __init__(self, grid: Grid, like: Tensor) -> None:
        self.cutter, self.like = Cutter(grid), like  # a tensor of the steps' type; its last dimension is theirs
        self.chunk = self.first = self.stride = self.cutter.chunk
        self.lookahead = self.cutter.lookahead

    def init_state(self, batch: int) -> CutState:
        """State of `batch` streams that have not begun."""
        return self.cutter.init_state(batch, self.like, self.like.shape[-1])

    def step(self, x: Chunk, state: CutState) -> tuple[Chunk, CutState]:
        """(batch, size, dim) -> (batch, 1, room * dim + 3)."""
        block, given, state = self.cutter.step(x, state)
        return Chunk(block.packed() * given[:, None, None], given.long(), block.last[:, 0]), state
