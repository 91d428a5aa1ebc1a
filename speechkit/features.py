"""Log-mel features as NeMo computes them, for whole utterances and sample by sample."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.masks import valid_mask
from speechkit.nn.mel import mel_bank
from speechkit.streaming.state import Chunk

LOG_GUARD = 2.0**-24


class LogMelState(NamedTuple):
    """What the next frames need of the past."""

    tail: Tensor  # (batch, window - 1) pre-emphasised samples
    previous: Tensor  # (batch, 1) last raw sample
    samples: Tensor  # (batch,) int64 samples seen
    frames: Tensor  # (batch,) int64 frames given


class LogMel(nn.Module):
    """Pre-emphasis, symmetric Hann window, power spectrum, Slaney mel, natural logarithm.

    Frame ``t`` is centred on sample ``t * hop``; the signal is zero before its start and after its end. An utterance of
    L samples has ``L // hop`` valid frames (``length_rule="floor"``, NeMo since 2.5) or one more (``"floor+1"``, what
    the published checkpoints were trained with). Streams take chunks of any size: ``chunk`` samples a frame.

    Args:
        sample_rate: Hz.
        n_mels: channels.
        n_fft: samples of a transform.
        window_ms: length of the window.
        stride_ms: between frames.
        preemphasis: weight of the sample before.
        normalize: ``per_feature`` for zero mean and unit deviation of every channel over the utterance; such a front
            end cannot stream.
        length_rule: see above.
        dither: deviation of the noise added in training.
        mean: taken from the logarithms before they are divided by `deviation`: constants of a corpus, which help
            training from scratch and cost a stream nothing. NeMo's models have none.
        deviation: see `mean`.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        n_fft: int = 512,
        window_ms: float = 25.0,
        stride_ms: float = 10.0,
        preemphasis: float = 0.97,
        normalize: str | None = None,
        length_rule: str = "floor",
        dither: float = 1e-5,
        mean: float = 0.0,
        deviation: float = 1.0,
    ) -> None:
        super().__init__()
        if length_rule not in ("floor", "floor+1"):
            raise ValueError(f"length_rule must be 'floor' or 'floor+1', got {length_rule!r}")
        if normalize not in (None, "per_feature"):
            raise ValueError(f"normalize must be null or 'per_feature', got {normalize!r}")
        _check_range("n_mels", n_mels, 1, 1024)
        _check_range("n_fft", n_fft, 2, 1 << 16)
        _check_range("the window in samples", sample_rate * window_ms / 1000, 1, n_fft)
        _check_range("the stride in samples", sample_rate * stride_ms / 1000, 1, n_fft)
        _check_range("preemphasis", preemphasis, 0, 1)
        _check_range("dither", dither, 0, 1)
        _check_range("mean", mean, -100, 100)
        _check_range("deviation", deviation, 0.01, 100)
        self.sample_rate, self.n_mels, self.n_fft = sample_rate, n_mels, n_fft
        self.window_samples = round(sample_rate * window_ms / 1000)
        self.hop = round(sample_rate * stride_ms / 1000)
        self.preemphasis, self.normalize, self.dither = preemphasis, normalize, dither
        self.mean, self.deviation = mean, deviation
        self.extra_frames = int(length_rule == "floor+1")
        # The window lies in the middle of the transform's n_fft samples, and those around the frame's own sample.
        self.before = n_fft // 2 - (n_fft - self.window_samples) // 2
        self.after = self.window_samples - self.before
        self.stride = self.chunk = self.hop
        self.lookahead = self.after - 1
        self.first = self.after % self.hop or self.hop
        self.register_buffer("window", torch.hann_window(self.window_samples, periodic=False), persistent=False)
        self.register_buffer("mel", mel_bank(sample_rate, n_fft, n_mels), persistent=False)
        self.window: Tensor
        self.mel: Tensor

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """Valid frames of utterances of so many samples."""
        frames = sample_lengths // self.hop + self.extra_frames
        return torch.where(sample_lengths > 0, frames, 0)

    def _log_mel(self, samples: Tensor, frames: int) -> Tensor:
        """(batch, (frames - 1) * hop + window) pre-emphasised samples -> (batch, frames, n_mels)."""
        if torch.compiler.is_exporting():
            return self._scaled(self._convolved_power(samples)[:, :frames])
        windows = samples.unfold(-1, self.window_samples, self.hop)[:, :frames]
        # Centred in the transform, as in torch.stft: rounding then is NeMo's, 2e-6 apart where it was 2e-4.
        room = self.n_fft - self.window_samples
        spectrum = torch.fft.rfft(torch.nn.functional.pad(windows * self.window, (room // 2, room - room // 2)))
        return self._scaled(spectrum.real.square() + spectrum.imag.square())

    def _scaled(self, power: Tensor) -> Tensor:
        return (torch.log(power @ self.mel + LOG_GUARD) - self.mean) / self.deviation

    def _convolved_power(self, samples: Tensor) -> Tensor:
        """The power spectrum without a Fourier transform, which graphs lack: a convolution with its windowed basis."""
        time = torch.arange(self.window_samples, dtype=torch.float64)
        angle = 2 * torch.pi / self.n_fft * torch.arange(self.n_fft // 2 + 1, dtype=torch.float64)[:, None] * time
        basis = (torch.cat([angle.cos(), angle.sin()]) * self.window.cpu().double()).to(samples)
        parts = torch.nn.functional.conv1d(samples[:, None], basis[:, None], stride=self.hop)
        real, imaginary = parts.square().chunk(2, dim=1)
        return (real + imaginary).transpose(1, 2)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) in [-1, 1] -> (batch, samples // hop + 1, n_mels), zero after each row's valid frames."""
        if self.training and self.dither > 0:
            wave = wave + self.dither * torch.randn_like(wave)
        with torch.autocast(wave.device.type, enabled=False):
            emphasised = wave - self.preemphasis * torch.nn.functional.pad(wave[:, :-1], (1, 0))
            emphasised = emphasised * valid_mask(lengths, wave.shape[1])
            frames = wave.shape[1] // self.hop + 1
            features = self._log_mel(torch.nn.functional.pad(emphasised, (self.before, self.after)), frames)
        frame_lengths = self.frame_lengths(lengths)
        mask = valid_mask(frame_lengths, frames)[..., None]
        if self.normalize == "per_feature":
            features = _normalized(features, mask)
        return features * mask, frame_lengths

    def init_state(self, batch: int) -> LogMelState:
        """State of `batch` streams that have not begun."""
        if self.normalize is not None:
            raise ValueError("per_feature normalisation needs the whole utterance: this front end cannot stream")
        zeros = self.window.new_zeros
        count = torch.zeros(batch, dtype=torch.int64, device=self.window.device)
        return LogMelState(zeros(batch, self.window_samples - 1), zeros(batch, 1), count, count.clone())

    def step(self, x: Chunk, state: LogMelState) -> tuple[Chunk, LogMelState]:
        """(batch, k * hop, 1) samples -> (batch, k, n_mels); each row may bring any number of samples."""
        room = x.values.shape[1]
        frames = room // self.hop
        wave = x.values[..., 0] * valid_mask(x.lengths, room)
        raw = torch.cat([state.previous, wave], dim=1)
        buffer = torch.cat([state.tail, raw[:, 1:] - self.preemphasis * raw[:, :-1]], dim=1)
        buffer = buffer * valid_mask(x.lengths + self.window_samples - 1, buffer.shape[1])
        samples = state.samples + x.lengths
        ready = torch.where(samples < self.after, 0, (samples - self.after) // self.hop + 1)
        ready = torch.where(x.last, self.frame_lengths(samples), ready)
        given = (ready - state.frames).clamp(0, frames)
        # Sample p lies at p - state.samples + window - 1; frame t begins `before` samples before t * hop.
        start = state.frames * self.hop - self.before - state.samples + self.window_samples - 1
        span = self.hop * (frames - 1) + self.window_samples
        padded = torch.nn.functional.pad(buffer, (0, span))
        index = (start[:, None] + torch.arange(span, device=start.device)).clamp(0, padded.shape[1] - 1)
        features = self._log_mel(padded.gather(1, index), frames) * valid_mask(given, frames)[..., None]
        tail = x.lengths[:, None] + torch.arange(self.window_samples - 1, device=start.device)
        new = LogMelState(buffer.gather(1, tail), raw.gather(1, x.lengths[:, None]), samples, state.frames + given)
        return Chunk(features, given, x.last & (new.frames >= ready)), new


def _check_range(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{what} must be from {least} to {most}, got {value}")


def _normalized(features: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit deviation per mel channel over each row's valid frames."""
    count = mask.sum(1, keepdim=True)
    mean = (features * mask).sum(1, keepdim=True) / count.clamp(min=1)
    variance = ((features - mean).square() * mask).sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return (features - mean) / (variance.sqrt() + 1e-5)
