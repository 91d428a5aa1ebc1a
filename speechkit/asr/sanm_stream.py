"""The encoder of Paraformer block by block: keys and values of earlier blocks' own steps are the state."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from speechkit.asr.blocks import Blocks, Grid
from speechkit.nn.sanm import Past
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push, where

if TYPE_CHECKING:
    from speechkit.asr.sanm_encoder import SanmEncoder


class SanmState(NamedTuple):
    """What the next block needs of the past."""

    pending: Tensor  # (batch, left + size + right - 1, in_dim): steps of earlier blocks, then those that wait
    waiting: Tensor  # (batch,) int64 steps of no block yet
    steps: Tensor  # (batch,) int64 steps that came
    taken: Tensor  # (batch,) int64 steps of blocks
    over: Tensor  # (batch,) bool: the last block was given
    memory: tuple[Tensor, ...]  # of each layer (batch, look_back * size, 2 * dim) keys and values


class SanmStream:
    """A `SanmEncoder` on a grid: features in, packed `Blocks` out, equal to `SanmEncoder.blocks`.

    A block is there as soon as its look-ahead is; at the end of a stream comes one with what remains, maybe nothing.

    With ``compat="reference"`` streams begin, and end, as FunASR's do: ``left + right`` rows of zeros that count stand
    in front, and a call that is the stream's last one and completes a block makes it the last one. What comes out then
    depends on how a stream is cut into calls.
    """

    def __init__(self, encoder: "SanmEncoder", grid: Grid, compat: str | None = None) -> None:
        if grid.check().whole:
            raise ValueError("a stream needs a grid: this model was trained with full context")
        self.encoder, self.grid, self.compat = encoder, grid, compat
        self.chunk = self.first = self.stride = grid.size
        self.lookahead = grid.size - 1 + grid.right

    def init_state(self, batch: int) -> SanmState:
        """State of `batch` streams that have not begun."""
        grid, weight = self.grid, self.encoder.norm.weight
        count = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        memory = [
            weight.new_zeros(batch, grid.look_back * grid.size, 2 * self.encoder.dim) for _ in self.encoder.layers
        ]
        pending = weight.new_zeros(batch, grid.room - 1, self.encoder.in_dim)
        waiting = count + (grid.right if self.compat else 0)
        return SanmState(pending, waiting, count, count.clone(), count > 0, tuple(memory))

    def step(self, x: Chunk, state: SanmState) -> tuple[Chunk, SanmState]:
        """(batch, size, in_dim) -> (batch, 1, room * dim + 3)."""
        grid = self.grid
        check_room(x, self.chunk)
        x = x._replace(values=self.encoder.embedded(x.values, state.steps + 1))
        queue = queue_push(state.pending, state.waiting + grid.left, x)
        waiting = state.waiting + x.lengths
        seen = grid.size + grid.right
        ends = x.last & (waiting == seen) if self.compat else torch.zeros_like(x.last)
        full = (waiting >= seen) & ~ends
        over = x.last & ~full
        active = full | (over & ~state.over & (state.steps + x.lengths > 0))
        taken = torch.where(full, grid.size, torch.where(x.last, waiting, 0))
        first = torch.zeros_like(waiting) if self.compat else (grid.left - state.taken).clamp(min=0)
        end = grid.left + waiting.clamp(max=seen)
        block = Blocks(queue[:, : grid.room, :][:, None], first[:, None], end[:, None], over[:, None])
        rows, memory = self._layers(block, state)
        kept = queue_pop(queue, taken.clamp(max=grid.size), grid.room - 1)
        memory = where(active, memory, state.memory)
        new = SanmState(kept, waiting - taken, state.steps + x.lengths, state.taken + taken, state.over | over, memory)
        values = block._replace(rows=rows[:, None]).packed() * active[:, None, None]
        return Chunk(values, active.long(), over), where(active | (x.lengths > 0), new, state)

    def _layers(self, block: Blocks, state: SanmState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The block's steps (batch, room, dim), and the memory after it."""
        grid = self.grid
        valid, x = block.valid()[:, 0], block.rows[:, 0]
        reach = grid.look_back * grid.size
        there = torch.arange(-reach, 0, device=x.device) >= -state.taken[:, None]
        x = x * valid[..., None]
        memory: list[Tensor] = []
        for layer, old in zip(self.encoder.layers, state.memory, strict=True):

            def past(made: Tensor, old: Tensor = old) -> Past | None:
                own = made[:, (0 if self.compat else grid.left) : grid.left + grid.size]
                memory.append(torch.cat([old, own], dim=1)[:, own.shape[1] :])
                return Past(old, there) if reach else None

            x = layer(x, valid, past)
        return self.encoder.norm(x) * valid[..., None], tuple(memory)
