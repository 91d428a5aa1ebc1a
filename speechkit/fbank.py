"""Kaldi's filter banks, for whole utterances and sample by sample."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

from speechkit.nn.masks import ended, valid_mask
from speechkit.streaming.state import Chunk

SCALE = 32768.0  # Kaldi's samples are whole numbers of 16 bits
LOW_HZ = 20.0
LEAST = torch.finfo(torch.float32).eps  # power whose logarithm is silence's


class FbankState(NamedTuple):
    """What the next frames need of the past."""

    tail: Tensor  # (batch, window - 1) samples
    samples: Tensor  # (batch,) int64 samples seen
    frames: Tensor  # (batch,) int64 frames given


class KaldiFbank(nn.Module):
    """Each frame without its mean, pre-emphasised within itself, under a Hamming window: logarithms of mel powers.

    As Kaldi computes them (`compute-fbank-feats`, ``snip_edges``): frame ``t`` begins with sample ``t * hop`` and is
    there when all of its samples are. Less than a window has no frames.

    Args:
        sample_rate: Hz.
        n_mels: channels.
        window_ms: length of a frame.
        stride_ms: between frames.
        preemphasis: weight of the sample before.
        dither: deviation of the noise added in training, in units of 16-bit samples.
    """

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_mels: int = 80,
        window_ms: float = 25.0,
        stride_ms: float = 10.0,
        preemphasis: float = 0.97,
        dither: float = 0.0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_mels = sample_rate, n_mels
        self.window_samples, self.hop = (round(sample_rate * ms / 1000) for ms in (window_ms, stride_ms))
        if not 1 <= self.hop <= self.window_samples <= 1 << 16 or not 1 <= n_mels <= 1024:
            raise ValueError(
                f"frames must be as long as their stride, and have 1 to 1024 channels, got windows of {window_ms} ms "
                f"every {stride_ms} ms and {n_mels} channels"
            )
        self.n_fft = 1 << (self.window_samples - 1).bit_length()
        self.preemphasis, self.dither = preemphasis, dither
        self.stride = self.chunk = self.hop
        self.lookahead = self.window_samples - 1
        self.first = self.window_samples % self.hop or self.hop
        bank, _ = get_mel_banks(n_mels, self.n_fft, sample_rate, LOW_HZ, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("mel", F.pad(bank, (0, 1)).T.contiguous(), persistent=False)
        window = torch.hamming_window(self.window_samples, periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.mel: Tensor
        self.window: Tensor

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """Frames of utterances of so many samples."""
        frames = (sample_lengths - self.window_samples).div(self.hop, rounding_mode="floor") + 1
        return frames.clamp(min=0)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) in [-1, 1], (batch,) -> (batch, frames, n_mels), zero after each row's own, (batch,)."""
        wave = F.pad(wave, (0, max(0, self.window_samples - wave.shape[1])))
        windows = wave.unfold(1, self.window_samples, self.hop)
        counts = self.frame_lengths(lengths)
        return ended(self._log_mel(windows), counts), counts

    def _log_mel(self, windows: Tensor) -> Tensor:
        """(batch, frames, window) samples -> (batch, frames, n_mels)."""
        with torch.autocast(windows.device.type, enabled=False):
            windows = SCALE * windows.to(self.window)
            if self.training and self.dither > 0:
                windows = windows + self.dither * torch.randn_like(windows)
            windows = windows - windows.mean(-1, keepdim=True)
            before = torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
            windows = (windows - self.preemphasis * before) * self.window
            if torch.compiler.is_exporting():
                power = self._projected_power(windows)
            else:
                spectrum = torch.fft.rfft(F.pad(windows, (0, self.n_fft - self.window_samples)))
                power = spectrum.real.square() + spectrum.imag.square()
            return (power @ self.mel).clamp(min=LEAST).log()

    def _projected_power(self, windows: Tensor) -> Tensor:
        """The power spectrum without a Fourier transform, which graphs lack."""
        time = torch.arange(self.window_samples, dtype=torch.float64)
        angle = 2 * torch.pi / self.n_fft * torch.arange(self.n_fft // 2 + 1, dtype=torch.float64)[:, None] * time
        parts = windows @ torch.cat([angle.cos(), angle.sin()]).T.to(windows)
        real, imaginary = parts.square().chunk(2, dim=-1)
        return real + imaginary

    def init_state(self, batch: int) -> FbankState:
        """State of `batch` streams that have not begun."""
        count = torch.zeros(batch, dtype=torch.int64, device=self.window.device)
        return FbankState(self.window.new_zeros(batch, self.window_samples - 1), count, count.clone())

    def step(self, x: Chunk, state: FbankState) -> tuple[Chunk, FbankState]:
        """(batch, k * hop, 1) samples -> (batch, k, n_mels); each row may bring any number of samples."""
        room = x.values.shape[1]
        frames, kept = room // self.hop, self.window_samples - 1
        buffer = torch.cat([state.tail, x.values[..., 0]], dim=1)
        samples = state.samples + x.lengths
        given = (self.frame_lengths(samples) - state.frames).clamp(0, frames)
        # Sample p lies at p - state.samples + window - 1.
        start = state.frames * self.hop - state.samples + kept
        span = self.hop * (frames - 1) + self.window_samples
        index = start[:, None] + torch.arange(span, device=start.device)
        windows = F.pad(buffer, (0, span)).gather(1, index).unfold(1, self.window_samples, self.hop)
        values = self._log_mel(windows) * valid_mask(given, frames)[..., None]
        tail = buffer.gather(1, x.lengths[:, None] + torch.arange(kept, device=start.device))
        return Chunk(values, given, x.last), FbankState(tail, samples, state.frames + given)
