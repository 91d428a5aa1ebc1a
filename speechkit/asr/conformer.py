"""The FastConformer encoder with limited attention context: one set of weights, several look-aheads."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechkit.asr.conformer_stream import ConformerStream
from speechkit.nn.attention import RelativeAttention, attention_bias, relative_positions
from speechkit.nn.convolution import ConvolutionModule
from speechkit.nn.linear import Linear
from speechkit.nn.masks import check_context, context_mask, valid_mask
from speechkit.nn.subsampling import Subsampling
from speechkit.streaming.chain import Chain

Context = tuple[int, int]
MAX_LAYERS = 1000  # more is damage or malice, and would take minutes to refuse otherwise


class FeedForward(nn.Sequential):
    """Linear, SiLU, dropout, linear."""

    def __init__(self, dim: int, hidden: int, dropout: float, bias: bool) -> None:
        super().__init__(Linear(dim, hidden, bias=bias), nn.SiLU(), nn.Dropout(dropout), Linear(hidden, dim, bias=bias))


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm (Gulati et al. 2020, equation 1)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        kernel: int,
        causal: bool,
        conv_norm: str,
        bias: bool,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(dim)
        self.feed_forward1 = FeedForward(dim, hidden, dropout, bias)
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = RelativeAttention(dim, heads, attention_dropout, bias)
        self.norm_convolution = nn.LayerNorm(dim)
        self.convolution = ConvolutionModule(dim, kernel, causal, conv_norm, bias)
        self.norm_feed_forward2 = nn.LayerNorm(dim)
        self.feed_forward2 = FeedForward(dim, hidden, dropout, bias)
        self.norm_out = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def enter(self, x: Tensor) -> Tensor:
        """The residual that attention reads."""
        return torch.add(x, self.dropout(self.feed_forward1(self.norm_feed_forward1(x))), alpha=0.5)

    def leave(self, x: Tensor) -> Tensor:
        """What follows the convolution."""
        return self.norm_out(torch.add(x, self.dropout(self.feed_forward2(self.norm_feed_forward2(x))), alpha=0.5))

    def forward(self, x: Tensor, bias: Tensor, sinusoids: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, dim), what `RelativeAttention` takes, and (batch, time, 1) bool -> (batch, time, dim)."""
        x = self.enter(x)
        x = x + self.dropout(self.attention(self.norm_attention(x), bias, sinusoids))
        x = x + self.dropout(self.convolution(self.norm_convolution(x), valid))
        return self.leave(x)


class ConformerEncoder(nn.Module):
    """Log-mel to encoder steps of eight frames (Rekesh et al. 2023; streaming as Noroozi et al. 2023).

    Args:
        contexts: [left, right] attention contexts in steps. In training every batch draws one, with `context_weights`
            or evenly; otherwise the first is used where none is given. A right context of R steps is a look-ahead of at
            most ``R * 80`` ms.
        style: ``chunked_limited`` (chunks of right + 1 steps that see themselves and what fits into left) or
            ``regular`` (a window around each step; look-ahead adds up over the layers).
        xscale: multiplies the subsampled features by ``sqrt(dim)``.
        causal: causal subsampling and convolution. Only causal encoders stream.
        conv_norm: ``layer_norm``, or ``batch_norm`` for checkpoints that have it.
    """

    def __init__(
        self,
        n_mels: int = 80,
        dim: int = 256,
        layers: int = 16,
        heads: int = 4,
        conv_kernel: int = 9,
        ff_expansion: int = 4,
        subsampling_channels: int = 256,
        contexts: Sequence[Sequence[int]] = ((70, 13), (70, 6), (70, 1), (70, 0)),
        context_weights: Sequence[float] | None = None,
        style: str = "chunked_limited",
        bias: bool = True,
        xscale: bool = True,
        causal: bool = True,
        conv_norm: str = "layer_norm",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if any(len(pair) != 2 for pair in contexts):
            raise ValueError(f"contexts must be pairs of left and right, got {list(contexts)}")
        self.contexts: list[Context] = [(int(left), int(right)) for left, right in contexts]
        for context in self.contexts:
            check_context(context, style)
        sizes = n_mels, dim, ff_expansion, subsampling_channels
        if min(sizes) < 1:
            raise ValueError(f"n_mels, dim, ff_expansion and subsampling_channels must be at least 1, got {sizes}")
        if not 1 <= layers <= MAX_LAYERS:
            raise ValueError(f"a Conformer has 1 to {MAX_LAYERS} layers, got {layers}")
        if not self.contexts:
            raise ValueError("a Conformer needs at least one attention context")
        if context_weights is not None and len(context_weights) != len(self.contexts):
            raise ValueError(f"context_weights needs one weight a context, got {len(context_weights)}")
        if context_weights is not None and not (min(context_weights) >= 0 and 0 < sum(context_weights) < math.inf):
            raise ValueError(f"context_weights must not be negative, nor all zero, got {list(context_weights)}")
        self.context_weights, self.style, self.causal, self.dim = context_weights, style, causal, dim
        self.scale = math.sqrt(dim) if xscale else 1.0
        self.subsampling = Subsampling(n_mels, dim, subsampling_channels, causal)
        with torch.no_grad():  # the layers' input begins with unit variance
            self.subsampling.out.weight /= self.scale
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            ConformerLayer(
                dim, heads, dim * ff_expansion, conv_kernel, causal, conv_norm, bias, dropout, attention_dropout
            )
            for _ in range(layers)
        )

    @property
    def stride(self) -> int:
        """Feature frames per step."""
        return self.subsampling.stride

    def draw_context(self) -> Context:
        """The context of a batch: drawn in training, the first otherwise."""
        if not self.training:
            return self.contexts[0]
        return random.choices(self.contexts, self.context_weights)[0]

    def forward(self, features: Tensor, lengths: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """(batch, frames, n_mels) -> (batch, steps, dim) and the valid steps of each row; zero after them."""
        x, lengths = self.subsampling(features, lengths)
        return self.contextualize(x, lengths, self.draw_context() if context is None else context)

    def contextualize(self, x: Tensor, lengths: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The layers alone: (batch, steps, dim) subsampled features -> the same shape, zero after each row's steps."""
        check_context(context, self.style)
        valid = valid_mask(lengths, x.shape[1])
        position = torch.arange(x.shape[1], device=x.device)
        visible = context_mask(position, position, context, self.style) & valid[:, None, :]
        x = self.dropout(x * self.scale)
        bias = attention_bias(visible, x.dtype)
        sinusoids = relative_positions(x.shape[1] - 1, 2 * x.shape[1] - 1, self.dim, self.subsampling.out.weight)
        for layer in self.layers:
            x = layer(x, bias, sinusoids, valid[..., None])
        return x * valid[..., None], lengths

    def at(self, context: Context, chunks: int = 1) -> Chain:
        """The encoder as a streaming module at one of its look-aheads: (batch, frames, n_mels) -> (batch, steps, dim).

        Takes `chunks` attention chunks a call. The view reads the weights as they are now: make it after loading them.
        """
        if not self.causal:
            raise ValueError(
                "this encoder was trained with full context: it cannot stream; transcribe it offline instead"
            )
        return Chain(self.subsampling, ConformerStream(self, context, chunks))
