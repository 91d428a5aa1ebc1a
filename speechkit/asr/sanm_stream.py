"""The encoder of Paraformer block by block: keys and values of earlier blocks' own steps are the state."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from speechkit.asr.block_stream import CutState, Cutter
from speechkit.asr.blocks import Blocks, Grid
from speechkit.nn.sanm import Past
from speechkit.streaming.state import Chunk, where

if TYPE_CHECKING:
    from speechkit.asr.sanm_encoder import SanmEncoder


class SanmState(NamedTuple):
    """What the next block needs of the past."""

    cut: CutState
    memory: tuple[Tensor, ...]  # of each layer (batch, look_back * size, 2 * dim) keys and values


class SanmStream:
    """A `SanmEncoder` on a grid: features in, packed `Blocks` out, equal to `SanmEncoder.blocks`.

    `compat` is that of `Cutter`.
    """

    def __init__(self, encoder: "SanmEncoder", grid: Grid, compat: str | None = None) -> None:
        self.cutter = Cutter(grid, compat)
        self.encoder, self.grid, self.compat = encoder, grid, compat
        self.chunk = self.first = self.stride = self.cutter.chunk
        self.lookahead = self.cutter.lookahead

    def init_state(self, batch: int) -> SanmState:
        """State of `batch` streams that have not begun."""
        encoder, weight = self.encoder, self.encoder.norm.weight
        reach = self.grid.look_back * self.grid.size
        memory = tuple(weight.new_zeros(batch, reach, 2 * encoder.dim) for _ in encoder.layers)
        return SanmState(self.cutter.init_state(batch, weight, encoder.in_dim), memory)

    def step(self, x: Chunk, state: SanmState) -> tuple[Chunk, SanmState]:
        """(batch, size, in_dim) -> (batch, 1, room * dim + 3)."""
        x = x._replace(values=self.encoder.embedded(x.values, state.cut.steps + 1))
        block, given, cut = self.cutter.step(x, state.cut)
        rows, memory = self._layers(block, state)
        values = block._replace(rows=rows[:, None]).packed() * given[:, None, None]
        return Chunk(values, given.long(), block.last[:, 0]), SanmState(cut, where(given, memory, state.memory))

    def _layers(self, block: Blocks, state: SanmState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The block's steps (batch, room, dim), and the memory after it."""
        grid = self.grid
        valid, x = block.valid()[:, 0], block.rows[:, 0]
        reach = grid.look_back * grid.size
        there = torch.arange(-reach, 0, device=x.device) >= -state.cut.taken[:, None]
        x = x * valid[..., None]
        memory: list[Tensor] = []
        for layer, old in zip(self.encoder.layers, state.memory, strict=True):

            def past(made: Tensor, old: Tensor = old) -> Past | None:
                own = made[:, (0 if self.compat else grid.left) : grid.left + grid.size]
                memory.append(torch.cat([old, own], dim=1)[:, own.shape[1] :])
                return Past(old, there) if reach else None

            x = layer(x, valid, past)
        return self.encoder.norm(x) * valid[..., None], tuple(memory)
