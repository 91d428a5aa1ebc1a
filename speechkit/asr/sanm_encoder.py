"""The encoder of Paraformer (Gao et al. 2020, SAN-M): whole utterances, or overlapping blocks that look back."""

import torch
from torch import Tensor, nn

from speechkit.asr.blocks import Blocks, Grid, cut
from speechkit.asr.sanm_stream import SanmStream
from speechkit.nn.masks import valid_mask
from speechkit.nn.sanm import EPSILON, Past, SanmLayer, positions

MAX_LAYERS = 1000


class SanmEncoder(nn.Module):
    """Low-frame-rate features, scaled, with positions added, through layers of attention with memory.

    Args:
        in_dim: of the features.
        dim: of the layers.
        layers: how many; the first one has nothing beside its attention.
        heads, inner, kernel, shift, dropout: as of `SanmLayer`.
    """

    stride = 1  # features per step

    def __init__(
        self,
        in_dim: int = 560,
        dim: int = 512,
        layers: int = 50,
        heads: int = 4,
        inner: int = 2048,
        kernel: int = 11,
        shift: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 1 <= layers <= MAX_LAYERS:
            raise ValueError(f"an encoder has 1 to {MAX_LAYERS} layers, got {layers}")
        if in_dim < 4 or in_dim % 2:
            raise ValueError(f"positions are sines and cosines: features need an even width of 4 or more, got {in_dim}")
        self.in_dim, self.dim = in_dim, dim
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            SanmLayer(dim if i else in_dim, dim, heads, inner, kernel, shift, dropout) for i in range(layers)
        )
        self.norm = nn.LayerNorm(dim, EPSILON)

    def embedded(self, features: Tensor, first: Tensor) -> Tensor:
        """(batch, time, in_dim) of which the first is at position `first` (batch,), counted from 1."""
        places = positions(first, features.shape[1], self.in_dim)
        return self.dropout(features * self.dim**0.5 + places.to(features))

    def forward(self, features: Tensor, lengths: Tensor, compat: str | None = None) -> tuple[Tensor, Tensor]:
        """(batch, time, in_dim), (batch,) -> (batch, time, dim), zero after each row's own, (batch,).

        With ``compat="reference"`` what follows a row's own is, as with FunASR, not zero but what comes of padding.
        """
        valid = valid_mask(lengths, features.shape[1])
        x = self.embedded(features, torch.ones_like(lengths))
        for layer in self.layers:
            x = layer(x, valid)
        x = self.norm(x)
        return x if compat else x * valid[..., None], lengths

    def blocks(self, features: Tensor, lengths: Tensor, grid: Grid) -> Blocks:
        """All blocks of (batch, time, in_dim) at once: what the stream `at` the grid gives one after another."""
        found = cut(self.embedded(features, torch.ones_like(lengths)), lengths, grid)
        valid = found.valid()
        x, each = found.rows.flatten(0, 1), valid.flatten(0, 1)
        count, reach = valid.shape[1], grid.look_back * grid.size
        at = torch.arange(count, device=x.device)[:, None] * grid.size + torch.arange(-reach, 0, device=x.device)
        there = (at >= 0).repeat(len(features), 1)

        def past(made: Tensor) -> Past | None:
            if not reach:
                return None
            own = made[:, grid.left : grid.left + grid.size].unflatten(0, (-1, count)).flatten(1, 2)
            return Past(own[:, at.clamp(min=0)].flatten(0, 1), there)

        for layer in self.layers:
            x = layer(x, each, past)
        x = self.norm(x) * each[..., None]
        return found._replace(rows=x.unflatten(0, (-1, count)))

    def at(self, grid: Grid, compat: str | None = None) -> SanmStream:
        """The encoder as a streaming module: features (batch, time, in_dim) to packed `Blocks`, one at a time."""
        return SanmStream(self, grid, compat)
