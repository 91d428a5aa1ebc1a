"""The inverse short-time Fourier transform as a sum of hops, whole or frame by frame."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk, queue_pop

LEAST = 0.1  # of the sum that all windows have: where those of the ends have less, sound is faded, not blown up
TINY = 1e-11  # of a sum, for frames that do not overlap: their window begins with zero


class IstftState(NamedTuple):
    """Hops that frames to come still add to."""

    sum: Tensor  # (batch, overlap - 1, hop) of windowed frames
    weight: Tensor  # (batch, overlap - 1, hop) of squared windows
    taken: Tensor  # (batch,) int64 frames so far
    given: Tensor  # (batch,) int64 hops so far


class InverseStft(nn.Module):
    """Frames of a spectrum to as many hops of samples, Hann windows, divided by the sum of their squares.

    At the ends the sum is of the frames that are there, but at least `LEAST` of what all would have.

    Args:
        n_fft: samples of a frame, a multiple of `hop`.
        hop: samples between frames.
        lookahead: frames after its own that a hop waits for, less than ``n_fft / hop``: frame t covers the samples from
            ``(t - lookahead) hop`` on. None lays it centrally, from ``t hop - (n_fft - hop) / 2`` on (Vocos' "same"
            padding), which cannot stream.
    """

    def __init__(self, n_fft: int, hop: int, lookahead: int | None = None) -> None:
        super().__init__()
        if n_fft % hop:
            raise ValueError(f"n_fft must be a multiple of the hop, got {n_fft} and {hop}")
        self.n_fft, self.hop, self.overlap = n_fft, hop, n_fft // hop
        if lookahead is not None and not 0 <= lookahead < self.overlap:
            raise ValueError(f"the look-ahead must be from 0 to {self.overlap - 1} frames, got {lookahead}")
        self.chunk = self.first = self.stride = 1
        self.lookahead, self.centred = lookahead or 0, lookahead is None
        self.cut = (n_fft - hop) // 2 if lookahead is None else lookahead * hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.window: Tensor
        least = LEAST * self.window.square().view(self.overlap, hop).sum(0)
        self.register_buffer("least", least.clamp(min=TINY), persistent=False)  # (hop,)
        self.least: Tensor

    def _frames(self, spectrum: Tensor) -> Tensor:
        """(batch, frames, n_fft + 2), real parts before imaginary ones -> windowed (batch, frames, overlap, hop)."""
        real, imaginary = spectrum.chunk(2, dim=-1)
        if torch.compiler.is_exporting():  # graphs have no Fourier transform of the inverse kind
            samples = torch.cat([real, imaginary], dim=-1) @ self._basis(spectrum)
        else:
            samples = torch.fft.irfft(torch.complex(real, imaginary), n=self.n_fft)
        return (samples * self.window).unflatten(-1, (self.overlap, self.hop))

    def _basis(self, like: Tensor) -> Tensor:
        """(n_fft + 2, n_fft): the transform as a product."""
        bins = self.n_fft // 2 + 1
        angle = 2 * torch.pi / self.n_fft * torch.outer(torch.arange(bins).double(), torch.arange(self.n_fft).double())
        count = torch.full((bins, 1), 2.0, dtype=torch.float64)
        count[0] = 1.0
        if self.n_fft % 2 == 0:
            count[-1] = 1.0
        return torch.cat([angle.cos() * count, -angle.sin() * count]).to(like) / self.n_fft

    def _weights(self, mask: Tensor) -> Tensor:
        """(batch, frames) -> squared windows (batch, frames, overlap, hop), zero where there is no frame."""
        return self.window.square().view(self.overlap, self.hop) * mask[..., None, None]

    def _added(self, frames: Tensor, before: Tensor | None = None) -> Tensor:
        """(batch, frames, overlap, hop) laid over one another -> (batch, frames + overlap - 1, hop)."""
        count = frames.shape[1]
        parts = [F.pad(frames[:, :, i], (0, 0, i, self.overlap - 1 - i)) for i in range(self.overlap)]
        total = torch.stack(parts).sum(0)
        return total if before is None else total + F.pad(before, (0, 0, 0, count))

    def forward(self, spectrum: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, n_fft + 2) and (batch,) -> (batch, frames, hop), zero after each row's end."""
        mask = valid_mask(lengths, spectrum.shape[1])
        total = self._added(self._frames(spectrum) * mask[..., None, None]).flatten(1)
        weight = torch.maximum(self._added(self._weights(mask).to(total)), self.least).flatten(1)
        samples = spectrum.shape[1] * self.hop
        kept = slice(self.cut, self.cut + samples)
        hops = (total[:, kept] / weight[:, kept]).unflatten(1, (-1, self.hop))
        return hops * mask[..., None], lengths

    def init_state(self, batch: int) -> IstftState:
        """State of `batch` streams that have not begun."""
        if self.centred:
            raise ValueError("frames that lie centrally need the future: this transform cannot stream")
        zeros = self.window.new_zeros(batch, self.overlap - 1, self.hop)
        count = torch.zeros(batch, dtype=torch.int64, device=zeros.device)
        return IstftState(zeros, zeros.clone(), count, count.clone())

    def step(self, x: Chunk, state: IstftState) -> tuple[Chunk, IstftState]:
        """(batch, frames, n_fft + 2) -> (batch, frames, hop)."""
        room, rest = x.values.shape[1], self.overlap - 1
        mask = valid_mask(x.lengths, room)
        total = self._added(self._frames(x.values) * mask[..., None, None], state.sum)
        weight = self._added(self._weights(mask).to(total), state.weight)
        taken = state.taken + x.lengths
        ready = torch.where(x.last, taken, (taken - self.lookahead).clamp(min=0))
        count = (ready - state.given).clamp(0, room)
        start = state.given + self.lookahead - state.taken
        hops = queue_pop(total, start, room) / torch.maximum(queue_pop(weight, start, room), self.least)
        given = state.given + count
        new = IstftState(queue_pop(total, x.lengths, rest), queue_pop(weight, x.lengths, rest), taken, given)
        return Chunk(hops * valid_mask(count, room)[..., None], count, x.last & (given >= ready)), new
