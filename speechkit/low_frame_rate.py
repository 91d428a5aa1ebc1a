"""The front end of FunASR's models: Kaldi's filter banks at a low frame rate, for whole utterances and streams."""

import torch
from torch import Tensor, nn

from speechkit.fbank import FbankState, KaldiFbank
from speechkit.nn.masks import ended
from speechkit.nn.window import Window, WindowState
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk

MAX_SPAN = 100  # frames that are joined


class LowFrameRate(nn.Module):
    """Every `stride` frames one of `span` frames side by side, and a shift and a scale of each number.

    The frames around every `stride`-th, ``span // 2`` before it; what lies outside is the first or the last frame.

    Args:
        dim: of a frame.
        span: frames that are joined.
        stride: frames between them.
        mean, deviation: of a number, what the shift and the scale begin with; a checkpoint may have those of each.
    """

    chunk: int
    lookahead: int

    def __init__(
        self, dim: int = 80, span: int = 7, stride: int = 6, mean: float = 0.0, deviation: float = 1.0
    ) -> None:
        super().__init__()
        if not 1 <= stride <= span <= MAX_SPAN or deviation <= 0:
            raise ValueError(
                f"frames are joined that overlap or touch, at most {MAX_SPAN}, and have a deviation over 0, got {span} "
                f"every {stride} and {deviation}"
            )
        self.window = Window(span, stride, mode="replicate", lookahead=span - 1 - span // 2)
        self.dim, self.span, self.out = dim, span, dim * span
        self.stride, self.chunk = stride, stride
        self.first, self.lookahead = self.window.first, self.window.lookahead
        self.register_buffer("shift", torch.full((self.out,), -float(mean)))
        self.register_buffer("scale", torch.full((self.out,), 1 / deviation))
        self.shift: Tensor
        self.scale: Tensor

    def _joined(self, seen: Tensor, counts: Tensor) -> Tensor:
        """(batch, dim, frames) that windows see -> (batch, windows, dim * span), zero after each row's own."""
        windows = seen.unfold(-1, self.span, self.stride).permute(0, 2, 3, 1).flatten(2)
        return ended((windows + self.shift) * self.scale, counts)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dim), (batch,) -> (batch, ceil(frames / stride), dim * span), (batch,)."""
        counts = self.window.counts(lengths)
        windows = (x.shape[1] + self.stride - 1) // self.stride
        return self._joined(self.window.whole(x.transpose(1, 2), lengths), counts)[:, :windows], counts

    def init_state(self, batch: int) -> WindowState:
        """State of `batch` streams that have not begun."""
        return self.window.init_state(self.shift, batch, self.dim)

    def step(self, x: Chunk, state: WindowState) -> tuple[Chunk, WindowState]:
        """(batch, k * stride, dim) -> (batch, k, dim * span)."""
        seen, counts, last, state = self.window.step(x, state)
        return Chunk(self._joined(seen, counts), counts, last), state


class LowFrameRateFbank(nn.Module):
    """Samples to filter banks to a low frame rate, itself a streaming module.

    Args:
        fbank: samples to frames.
        joined: frames to fewer and larger ones.
    """

    def __init__(self, fbank: KaldiFbank, joined: LowFrameRate) -> None:
        super().__init__()
        if joined.dim != fbank.n_mels:
            raise ValueError(f"frames have {fbank.n_mels} channels here and {joined.dim} there")
        self.fbank, self.joined = fbank, joined
        self.sample_rate, self.hop, self.out = fbank.sample_rate, fbank.hop * joined.stride, joined.out
        chain = self._chain()
        self.chunk, self.first, self.stride, self.lookahead = chain.chunk, chain.first, chain.stride, chain.lookahead

    def _chain(self) -> Chain:
        return Chain(self.fbank, self.joined)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) in [-1, 1], (batch,) -> (batch, time, out), zero after each row's own, (batch,)."""
        features, counts = self.joined(*self.fbank(wave, lengths))
        return features, counts

    def init_state(self, batch: int) -> tuple[FbankState, WindowState]:
        """State of `batch` streams that have not begun."""
        return self.fbank.init_state(batch), self.joined.init_state(batch)

    def step(self, x: Chunk, state: tuple[FbankState, WindowState]) -> tuple[Chunk, tuple[FbankState, WindowState]]:
        """(batch, k * chunk, 1) samples -> (batch, k, out)."""
        y, new = self._chain().step(x, state)
        return y, (new[0], new[1])
