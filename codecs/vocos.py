"""Vocos' decoder with attention (Siuzdak 2023; Ji et al. 2024, section 3.3): latents to samples."""

from typing import Any

import torch
from torch import Tensor, nn

from speechkit.codecs.vocos_layers import (
    AdaLayerNorm,
    Attention,
    Between,
    ConvNextBlock,
    Embed,
    Head,
    ResidualBlock,
)
from speechkit.errors import InputError
from speechkit.nn.istft import InverseStft
from speechkit.nn.masks import MAX_CONTEXT
from speechkit.nn.window import Window

MAX_FFT = 1 << 16  # samples of a frame


class VocosDecoder(nn.Module):
    """Convolutions with attention, ConvNeXt blocks, and an inverse transform.

    Args:
        in_dim: of the latents.
        dim: inside.
        inner: of the ConvNeXt blocks' linear layers.
        layers: ConvNeXt blocks.
        hop: samples of a latent.
        n_fft: samples of a frame, a multiple of `hop`.
        kinds: embeddings of the normalisation; the published models have four and use the first.
        groups: of the group normalisations.
        dropout: in the residual blocks.
        left: latents before its own that attention sees: the decoder is causal then, but for `lookahead`. None: as
            published, all of them, with normalisation over time and padding on both sides.
        lookahead: latents that a hop of samples waits for, where causal.
    """

    def __init__(
        self,
        in_dim: int = 512,
        dim: int = 768,
        inner: int = 2304,
        layers: int = 12,
        hop: int = 320,
        n_fft: int = 1280,
        kinds: int = 4,
        groups: int = 32,
        dropout: float = 0.1,
        left: int | None = None,
        lookahead: int = 2,
    ) -> None:
        super().__init__()
        sizes = (in_dim, dim, inner, layers, hop, n_fft, kinds, groups)
        if min(sizes) < 1 or max(hop, n_fft) > MAX_FFT:
            raise ValueError(
                f"sizes of a decoder must be at least 1, hop and n_fft at most {MAX_FFT}, got {list(sizes)}"
            )
        if dim % groups:
            raise ValueError(f"the channels must be a multiple of the groups, got {dim} and {groups}")
        if left is not None and not 0 <= left <= MAX_CONTEXT:
            raise ValueError(f"left must be a number of latents up to {MAX_CONTEXT}, or null, got {left}")
        causal = left is not None

        def window(kernel: int) -> Window:
            return Window(kernel, causal=causal, mode="zeros")

        self.hop, self.causal, self.kinds = hop, causal, kinds
        self.embed = Embed(in_dim, dim, 7, window(7))
        self.mixing = nn.ModuleList(
            Attention(dim, groups, left) if i == 2 else ResidualBlock(dim, groups, causal, dropout) for i in range(5)
        )
        self.between = Between(dim, groups, kinds, by_frame=causal)
        self.blocks = nn.ModuleList(ConvNextBlock(dim, inner, kinds, 1 / layers, window(7)) for _ in range(layers))
        self.head = Head(dim, InverseStft(n_fft, hop, lookahead if causal else None))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights in the first convolution and the ConvNeXt blocks, as in the published training."""
        for part in (self.embed, *self.blocks):
            for layer in part.modules():
                if isinstance(layer, nn.Conv1d | nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    assert layer.bias is not None
                    nn.init.zeros_(layer.bias)

    def use(self, kind: int) -> None:
        """Chooses the normalisation's embedding."""
        for part in self.modules():
            if isinstance(part, AdaLayerNorm):
                part.kind = kind

    def parts(self) -> list[Any]:
        """Everything in its order; each a streaming module where the decoder is causal."""
        return [self.embed, *self.mixing, self.between, *self.blocks, self.head]

    def streaming(self) -> list[Any]:
        """The parts, for a chain.

        Raises:
            InputError: the decoder is not causal.
        """
        if not self.causal:
            raise InputError("this decoder hears all latents at once: it decodes in windows, or whole")
        return self.parts()

    def forward(self, latents: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, in_dim), (batch,) -> (batch, time * hop), (batch,) samples.

        A row's samples are those that it has alone, whatever is behind its end.
        """
        x = latents * (torch.arange(latents.shape[1], device=lengths.device) < lengths[:, None])[..., None]
        for part in self.parts():
            x, lengths = part(x, lengths)
        return x.flatten(1), lengths * self.hop
