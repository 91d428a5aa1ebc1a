"""A Conformer in the place of Paraformer's own encoder: its attention chunks are the blocks."""

from torch import Tensor, nn

from speechkit.asr.block_stream import Packing
from speechkit.asr.blocks import Blocks, Grid, cut
from speechkit.asr.conformer import ConformerEncoder
from speechkit.streaming.chain import Chain


class ConformerBlocks(nn.Module):
    """A `ConformerEncoder` whose right context is a block, and its left one what a grid looks back at.

    Args:
        encoder: with attention in chunks; it needs no contexts of its own but one.
    """

    def __init__(self, encoder: ConformerEncoder) -> None:
        super().__init__()
        self.encoder, self.dim, self.stride = encoder, encoder.dim, encoder.stride
        self.in_dim = encoder.subsampling.n_mels

    def context(self, grid: Grid) -> tuple[int, int]:
        """The encoder's context of a grid; ValueError where its blocks overlap, or the encoder has none."""
        if not grid.whole and not (self.encoder.causal and self.encoder.style == "chunked_limited"):
            raise ValueError("only a causal Conformer whose style is chunked_limited has blocks: leave grids empty")
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
        return Chain(self.encoder.at(self.context(grid)), Packing(grid, weight.new_zeros(self.dim)))
