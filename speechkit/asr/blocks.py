"""Overlapping blocks of steps: how an encoder of Paraformer's kind is cut for streams, and the same in training."""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_STEPS = 10_000  # of a block or of what it looks back at: more is damage or malice


class Grid(NamedTuple):
    """Blocks of `size` steps, heard together with `left` steps before them and `right` ones after them.

    Of earlier blocks the encoder's attention sees `look_back`, the decoder's `decoder_look_back`. A stream's last
    block has all that remains. A `size` of 0 is no grid: whole utterances.
    """

    left: int = 0
    size: int = 0
    right: int = 0
    look_back: int = 0
    decoder_look_back: int = 0

    @property
    def whole(self) -> bool:
        """Whether utterances are heard whole."""
        return self.size == 0

    @property
    def room(self) -> int:
        """Steps that are heard together."""
        return self.left + self.size + self.right

    def blocks(self, lengths: Tensor) -> Tensor:
        """(batch,) steps -> (batch,) blocks that are not the last one: each needs `right` steps after its own."""
        return (lengths - self.right).clamp(min=0).div(self.size, rounding_mode="floor")

    def check(self) -> "Grid":
        """Itself.

        Raises:
            ValueError: it is no grid.
        """
        if min(self) < 0 or (self.whole and any(self)):
            raise ValueError(
                "a grid is [left, size, right, look_back, decoder_look_back]: steps, and blocks that are looked back "
                f"at, none of them without end; got {list(self)}"
            )
        if max(self.room, self.look_back * self.size, self.decoder_look_back * self.size) > MAX_STEPS:
            raise ValueError(f"a grid has at most {MAX_STEPS} steps in a block and before it, got {list(self)}")
        return self


WHOLE = Grid()


class Blocks(NamedTuple):
    """Blocks of many utterances."""

    rows: Tensor  # (batch, blocks, room, dim) steps, zero where they are not valid
    first: Tensor  # (batch, blocks) int64, the first valid step
    end: Tensor  # (batch, blocks) int64, the steps up to the last valid one
    last: Tensor  # (batch, blocks) bool: nothing follows

    def valid(self) -> Tensor:
        """(batch, blocks, room) bool."""
        at = torch.arange(self.rows.shape[2], device=self.rows.device)
        return (at >= self.first[..., None]) & (at < self.end[..., None])

    def owned(self, grid: Grid) -> Tensor:
        """(batch, blocks, room) bool: the steps that are no other block's."""
        at = torch.arange(self.rows.shape[2], device=self.rows.device)
        end = torch.where(self.last, self.end, self.end.clamp(max=grid.left + grid.size))
        return (at >= grid.left) & (at < end[..., None])

    def packed(self) -> Tensor:
        """(batch, blocks, room * dim + 3): as an encoder's outputs flow."""
        marks = torch.stack([self.first, self.end, self.last.long()], dim=-1)
        return torch.cat([self.rows.flatten(2), marks.to(self.rows)], dim=-1)


def unpacked(values: Tensor, room: int) -> Blocks:
    """What `Blocks.packed` was made of."""
    marks = values[..., -3:].round().long()
    rows = values[..., :-3].unflatten(-1, (room, -1))
    return Blocks(rows, marks[..., 0], marks[..., 1], marks[..., 2] > 0)


def cut(x: Tensor, lengths: Tensor, grid: Grid) -> Blocks:
    """(batch, steps, dim), of which (batch,) are valid -> all of their blocks; those after a row's last are empty."""
    whole = grid.blocks(lengths)
    count = int(whole.max()) + 1 if len(whole) else 1
    block = torch.arange(count, device=x.device)
    begin = block * grid.size - grid.left
    index = begin[:, None] + torch.arange(grid.room, device=x.device)
    there = block <= whole[:, None]
    first = (-begin).clamp(min=0).expand(len(x), -1)
    end = (lengths[:, None] - begin).clamp(min=0, max=grid.room) * there
    rows = x[:, index.clamp(0, max(0, x.shape[1] - 1))] if x.shape[1] else x.new_zeros(len(x), *index.shape, x.shape[2])
    found = Blocks(rows, first, end, block == whole[:, None])
    return found._replace(rows=rows * found.valid()[..., None])
