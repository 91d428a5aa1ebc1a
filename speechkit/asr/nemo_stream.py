"""NeMo's own streaming arithmetic and caches, for parity, its ONNX layout and `compat="reference"`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.attention import attention_bias
from speechkit.nn.masks import check_context, context_mask, valid_mask
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push, where

if TYPE_CHECKING:
    from speechkit.asr.conformer import ConformerEncoder, ConformerLayer

PREVIOUS_FRAMES = 9  # of the chunk before, given again to the subsampling
DROPPED_STEPS = 2  # that those frames make: the only ones that see the chunk's left padding
UNLIMITED_CACHE = 10_000  # steps that NeMo keeps where the left context has no limit


class NemoCache(NamedTuple):
    """NeMo's caches, batch first: the inputs and outputs of its exported encoders."""

    channel: Tensor  # (batch, layers, left, dim) normalised inputs of the attention, before any projection
    time: Tensor  # (batch, layers, dim, kernel - 1) inputs of the depthwise convolution
    length: Tensor  # (batch,) int64 filled entries of `channel`, from its end


class CacheAwareEncoder:
    """A `ConformerEncoder` chunk by chunk as NeMo runs it.

    Each chunk brings the nine feature frames before it and drops the two steps they make; keys and values of the left
    context are projected anew. That equals the masked forward pass where the right context R is 1 or more. With R = 0
    the second chunk has one frame before it and eight frames of zeros, which are not the padding of the convolutions:
    its outputs are off until the left context has passed. So it is with ``regular`` attention at any R.
    `ConformerEncoder.at` has no such error.

    Args:
        encoder: a causal encoder.
        context: left and right context in steps.
        pad_and_drop: the first chunk is as long as the others and follows nine frames of zeros, as fixed shapes need
            it. Step n then sits on frame ``8 n + 7``: 70 ms later than without, and with other values.
    """

    def __init__(self, encoder: "ConformerEncoder", context: tuple[int, int], pad_and_drop: bool = False) -> None:
        check_context(context, encoder.style)
        left, right = context
        if not encoder.causal or right < 0:
            raise ValueError(f"NeMo streams causal encoders with a limited right context, got {list(context)}")
        self.encoder, self.context, self.pad_and_drop = encoder, context, pad_and_drop
        self.left = left if left >= 0 else UNLIMITED_CACHE
        ahead = right * len(encoder.layers) if encoder.style == "regular" else right
        self.cache_drop = ahead if encoder.style == "regular" else 0
        self.valid_steps = ahead - self.cache_drop + 1
        stride = encoder.stride
        self.chunk_frames = (1 + stride * ahead, stride + stride * ahead)  # first, next
        self.shift_frames = (1 + stride * (self.valid_steps - 1), stride * self.valid_steps)

    @property
    def layers(self) -> "list[ConformerLayer]":
        """The encoder's layers."""
        return cast("list[ConformerLayer]", list(self.encoder.layers))

    def initial(self, batch: int) -> NemoCache:
        """Caches of streams that have not begun."""
        weight, count = self.encoder.subsampling.out.weight, len(self.layers)
        channel = weight.new_zeros(batch, count, self.left, self.encoder.dim)
        time = weight.new_zeros(batch, count, self.encoder.dim, self.layers[0].convolution.left)
        return NemoCache(channel, time, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def pieces(self, mel: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Cuts features (batch, frames, n_mels) as NeMo's simulator does: `step`'s mel, lengths and first.

        An end of fewer than eight frames is not given, as there.
        """
        start, frames = 0, mel.shape[1]
        while start < frames:
            first = start == 0
            long = int(not first or self.pad_and_drop)
            piece = mel[:, start : start + self.chunk_frames[long]]
            if not first and piece.shape[1] < self.encoder.stride:
                return
            before = PREVIOUS_FRAMES * long
            past = mel[:, max(0, start - before) : start]
            piece = torch.cat([F.pad(past, (0, 0, before - past.shape[1], 0)), piece], dim=1)
            yield piece, (lengths - start + before).clamp(0, piece.shape[1]), first
            start += self.shift_frames[long]

    def step(
        self, mel: Tensor, lengths: Tensor, cache: NemoCache, first: bool = False, keep_all: bool = True
    ) -> tuple[Tensor, Tensor, NemoCache]:
        """One chunk of every stream.

        Args:
            mel: (batch, frames, n_mels), beginning with the nine frames before the chunk, except in a first chunk
                without `pad_and_drop`.
            lengths: (batch,) valid frames among them.
            cache: of the chunk before.
            first: whether these are first chunks.
            keep_all: gives the steps, too, that the next chunk will give again with more look-ahead (``regular``).

        Returns:
            (batch, steps, dim), (batch,) valid steps, and the caches for the next chunk.
        """
        dropped = 0 if first and not self.pad_and_drop else DROPPED_STEPS
        x, steps = self.encoder.subsampling(mel, lengths)
        x, steps = x[:, dropped:] * self.encoder.scale, (steps - dropped).clamp(min=0)
        position = torch.arange(self.left + x.shape[1], device=x.device)
        filled = (position >= (self.left - cache.length)[:, None]) & (position < (self.left + steps)[:, None])
        visible = context_mask(position[self.left :], position, self.context, self.encoder.style)
        visible = visible & filled[:, None] & filled[:, self.left :, None]
        channels, times = [], []
        for i, layer in enumerate(self.layers):
            x, channel, time = self._layer(layer, x, visible, cache.channel[:, i], cache.time[:, i])
            channels.append(channel)
            times.append(time)
        length = (cache.length + self._kept(x)).clamp(max=self.left)
        if not keep_all:
            x, steps = x[:, : self.valid_steps], steps.clamp(max=self.valid_steps)
        return x, steps, NemoCache(torch.stack(channels, 1), torch.stack(times, 1), length)

    def _kept(self, x: Tensor) -> int:
        """Steps of a chunk that go into the caches: not those that the next chunk will give again."""
        return max(0, x.shape[1] - self.cache_drop)

    def _layer(
        self, layer: "ConformerLayer", x: Tensor, visible: Tensor, channel: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer over its caches (batch, left, dim) and (batch, dim, kernel - 1)."""
        kept = self._kept(x)
        x = layer.enter(x)
        normed = layer.norm_attention(x)
        past = torch.cat([channel, normed], dim=1)
        attention = layer.attention
        q, k, v = attention.project(past)
        size = past.shape[1]
        positions = attention.positions(size - 1, size + x.shape[1] - 1)
        y = attention.attend(q[:, :, self.left :], k, v, positions, attention_bias(visible, x.dtype))
        # A query that sees nothing takes nothing, where a softmax over masked scores would give a mean.
        nothing = attention.out.bias if attention.out.bias is not None else y.new_zeros(())
        valid = visible.any(-1, keepdim=True)
        x = x + torch.where(valid, y, nothing)
        convolution = layer.convolution
        gated = torch.cat([time.transpose(1, 2), convolution.gate(layer.norm_convolution(x), valid)], dim=1)
        x = layer.leave(x + convolution.convolve(gated))
        channel = past[:, kept : self.left + kept]
        return x, channel, gated[:, kept : kept + convolution.left].transpose(1, 2)


class NemoStreamState(NamedTuple):
    """Frames that wait for their chunk, the last ones taken, and NeMo's caches."""

    pending: Tensor  # (batch, chunk - 1, n_mels)
    waiting: Tensor  # (batch,) int64 valid entries of `pending`
    frames: Tensor  # (batch,) int64 frames taken
    previous: Tensor  # (batch, 9, n_mels)
    cache: NemoCache


class NemoStream:
    """`CacheAwareEncoder` as a streaming module: frames (batch, chunk, n_mels) to steps (batch, right + 1, dim).

    A stream's short end is used, not thrown away as NeMo's simulator does where it has fewer than eight frames.
    """

    def __init__(self, encoder: "ConformerEncoder", context: tuple[int, int]) -> None:
        if encoder.style != "chunked_limited":
            raise ValueError(f"compat='reference' streams chunked_limited encoders, got style {encoder.style!r}")
        self.inner = CacheAwareEncoder(encoder, context)
        self.first, self.chunk = self.inner.chunk_frames
        self.stride, self.lookahead = encoder.stride, 0

    def init_state(self, batch: int) -> NemoStreamState:
        """State of `batch` streams that have not begun."""
        cache = self.inner.initial(batch)
        zeros, bands = cache.channel.new_zeros, self.inner.encoder.subsampling.n_mels
        return NemoStreamState(
            zeros(batch, self.chunk - 1, bands),
            torch.zeros_like(cache.length),
            torch.zeros_like(cache.length),
            zeros(batch, PREVIOUS_FRAMES, bands),
            cache,
        )

    def step(self, x: Chunk, state: NemoStreamState) -> tuple[Chunk, NemoStreamState]:
        """(batch, chunk, n_mels) -> (batch, right + 1, dim); rows may be in different phases."""
        check_room(x, self.chunk)
        queue = queue_push(state.pending, state.waiting, x)
        waiting, fresh = state.waiting + x.lengths, state.frames == 0
        wanted = torch.where(fresh, self.first, self.chunk)
        taken = torch.where(x.last | (waiting >= wanted), waiting.minimum(wanted), 0)
        piece = queue_pop(queue, torch.zeros_like(taken), self.chunk)
        piece = piece * valid_mask(taken, self.chunk)[..., None]
        joined = torch.cat([state.previous, piece], dim=1)
        starts = self.inner.step(piece[:, : self.first], torch.where(fresh, taken, 0), state.cache, first=True)
        goes_on = (taken > 0) & ~fresh
        y, steps, cache = self.inner.step(joined, torch.where(goes_on, taken + PREVIOUS_FRAMES, 0), state.cache)
        y = torch.where(fresh[:, None, None], starts[0], y)
        given = torch.where(fresh, starts[1], steps)
        cache = where(taken > 0, where(fresh, starts[2], cache), state.cache)
        left = waiting - taken
        new = NemoStreamState(
            queue_pop(queue, taken, self.chunk - 1),
            left,
            state.frames + taken,
            queue_pop(joined, taken, PREVIOUS_FRAMES),
            cache,
        )
        return Chunk(y * valid_mask(given, y.shape[1])[..., None], given, x.last & (left == 0)), new
