"""Three kinds of discriminators of waves: by periods, by spectra, and by bands of complex spectra."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.codecs.seanet import normalize_weights

SLOPE = 0.1  # of leaky rectifiers below zero
LEVEL = 0.8  # peak of what the discriminators of DAC hear
SILENCE = 1e-9  # added to a peak


class Verdict(NamedTuple):
    """What one discriminator says of waves."""

    score: Tensor  # (batch, 1, time, width): high where it takes them for real
    features: list[Tensor]  # (batch, channels, time, width), of the layers that feature matching compares

    def halves(self) -> "tuple[Verdict, Verdict]":
        """Of the first half of the rows, and of the second."""
        pairs = [feature.chunk(2) for feature in self.features]
        one, other = self.score.chunk(2)
        return Verdict(one, [pair[0] for pair in pairs]), Verdict(other, [pair[1] for pair in pairs])


class PeriodDiscriminator(nn.Module):
    """Convolutions along every `period`-th sample (Kong et al. 2020, section 2.3).

    Args:
        period: samples.
        channels: of the layers; all but the last shorten three times.
        kinds: embeddings that its score is projected on (Vocos): its features are of all layers but the first, and
            the score. None: as in DAC, without them; its features are of all layers, and there is a whole period
            of padding where none would be needed.
    """

    def __init__(self, period: int, channels: Sequence[int], kinds: int | None = None) -> None:
        super().__init__()
        self.period, self.conditional = period, kinds is not None
        self.least = period + 1  # samples that it can hear, as below
        self.convs = nn.ModuleList()
        for i, (before, after) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            stride = 3 if i < len(channels) - 1 else 1
            self.convs.append(nn.Conv2d(before, after, (5, 1), (stride, 1), (2, 0)))
        self.emb = _embedding(kinds, channels[-1])
        self.conv_post = nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, wave: Tensor, kind: int = 0) -> Verdict:
        """(batch, samples) -> its verdict."""
        rest = wave.shape[1] % self.period
        if rest or not self.conditional:
            wave = F.pad(wave[:, None], (0, self.period - rest), "reflect")[:, 0]
        x, features = wave.view(len(wave), 1, -1, self.period), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        score = _scored(self.conv_post, self.emb, x, kind)
        return Verdict(score, [*features[1:], score] if self.conditional else features)


class SpectrumDiscriminator(nn.Module):
    """Convolutions over magnitudes (Jang et al. 2021, section 2.3), of spectra under a rectangular window.

    Args:
        n_fft: samples of a transform, and of its window.
        hop: samples between transforms.
        channels: of each layer.
        kinds: embeddings that its score is projected on.
    """

    def __init__(self, n_fft: int, hop: int, channels: int, kinds: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.least = n_fft, hop, n_fft // 2 + 1
        shapes = [((7, 5), (2, 2)), ((5, 3), (2, 1)), ((5, 3), (2, 2)), ((3, 3), (2, 1)), ((3, 3), (2, 2))]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels if i else 1, channels, kernel, stride, (kernel[0] // 2, kernel[1] // 2))
            for i, (kernel, stride) in enumerate(shapes)
        )
        self.emb = _embedding(kinds, channels)
        self.conv_post = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, wave: Tensor, kind: int = 0) -> Verdict:
        """(batch, samples) -> its verdict, for which "time" are frequencies and "width" is time."""
        x, features = _spectrum(wave, self.n_fft, self.hop).abs()[:, None], []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        score = _scored(self.conv_post, self.emb, x, kind)
        return Verdict(score, [*features, score])


class BandDiscriminator(nn.Module):
    """Convolutions over the complex spectrum, each band by its own (Kumar et al. 2023, section 3.3).

    Args:
        n_fft: samples of a transform, of its rectangular window, and of four hops.
        channels: of each layer.
        bands: borders, as shares of all frequencies.
    """

    def __init__(self, n_fft: int, channels: int, bands: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.n_fft, count = n_fft, n_fft // 2 + 1
        self.least = count
        self.bands = [(int(low * count), int(high * count)) for low, high in bands]
        self.band_convs = nn.ModuleList(nn.ModuleList(_band_layers(channels)) for _ in bands)
        self.conv_post = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, wave: Tensor) -> Verdict:
        """(batch, samples) -> its verdict, for which "width" are frequencies."""
        spectrum = torch.view_as_real(_spectrum(wave, self.n_fft, self.n_fft // 4)).permute(0, 3, 2, 1)
        ends, features = [], []
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            assert isinstance(convs, nn.ModuleList)
            x = spectrum[..., low:high]
            for conv in convs:
                x = F.leaky_relu(conv(x), SLOPE)
                features.append(x)
            ends.append(x)
        return Verdict(self.conv_post(torch.cat(ends, dim=-1)), features)


class MultiPeriod(nn.Module):
    """HiFi-GAN's discriminators with the embeddings of Vocos."""

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        kinds: int = 4,
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(PeriodDiscriminator(period, channels, kinds) for period in periods)
        self.kinds, self.least = kinds, _least(self.discriminators)
        normalize_weights(self)

    def forward(self, wave: Tensor, kind: int = 0) -> list[Verdict]:
        """(batch, samples) -> a verdict for each period."""
        return [part(wave, kind) for part in self.discriminators]


class MultiResolution(nn.Module):
    """UnivNet's discriminators as Vocos has them; resolutions are pairs of transform and hop in samples."""

    def __init__(
        self,
        resolutions: Sequence[Sequence[int]] = ((1024, 256), (2048, 512), (512, 128)),
        channels: int = 64,
        kinds: int = 4,
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(SpectrumDiscriminator(n, hop, channels, kinds) for n, hop in resolutions)
        self.kinds, self.least = kinds, _least(self.discriminators)
        normalize_weights(self)

    def forward(self, wave: Tensor, kind: int = 0) -> list[Verdict]:
        """(batch, samples) -> a verdict for each resolution."""
        return [part(wave, kind) for part in self.discriminators]


class DacDiscriminator(nn.Module):
    """DAC's discriminators by periods and by bands; what they hear has no mean and one peak."""

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        n_ffts: Sequence[int] = (2048, 1024, 512),
        band_channels: int = 32,
        bands: Sequence[Sequence[float]] = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)),
    ) -> None:
        super().__init__()
        by_period = [PeriodDiscriminator(period, channels) for period in periods]
        self.discriminators = nn.ModuleList([*by_period, *(BandDiscriminator(n, band_channels, bands) for n in n_ffts)])
        self.least = _least(self.discriminators)
        normalize_weights(self)

    def forward(self, wave: Tensor) -> list[Verdict]:
        """(batch, samples) -> a verdict for each period and each transform."""
        wave = wave - wave.mean(-1, keepdim=True)
        wave = LEVEL * wave / (wave.abs().amax(-1, keepdim=True) + SILENCE)
        return [part(wave) for part in self.discriminators]


def _least(parts: Iterable[Any]) -> int:
    return max((part.least for part in parts), default=1)


class _Halving(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """One bin in bfloat16 on a CPU: oneDNN's gradient of the weights reads what nobody wrote (PyTorch 2.11)."""
        if x.shape[-1] > 1 or x.device.type != "cpu" or x.dtype == torch.float64:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def _band_layers(channels: int) -> list[nn.Conv2d]:
    wide = [_Halving(channels, channels, (3, 9), (1, 2), (1, 4)) for _ in range(3)]
    return [nn.Conv2d(2, channels, (3, 9), padding=(1, 4)), *wide, nn.Conv2d(channels, channels, 3, padding=1)]


def _embedding(kinds: int | None, dim: int) -> nn.Embedding | None:
    if kinds is None:
        return None
    embedding = nn.Embedding(kinds, dim)
    nn.init.zeros_(embedding.weight)
    return embedding


def _scored(post: nn.Module, embedding: nn.Embedding | None, x: Tensor, kind: int) -> Tensor:
    """The last layer, and the projection on an embedding (Miyato and Koyama 2018, equation 3)."""
    score: Tensor = post(x)
    if embedding is None:
        return score
    return score + (embedding.weight[kind][:, None, None] * x).sum(1, keepdim=True)


def _spectrum(wave: Tensor, n_fft: int, hop: int) -> Tensor:
    """(batch, frequencies, frames), complex."""
    wave = wave.float() if wave.dtype in (torch.float16, torch.bfloat16) else wave
    window = torch.ones(n_fft, dtype=wave.dtype, device=wave.device)
    return torch.stft(wave, n_fft, hop, window=window, return_complex=True)
