"""What the training of a codec minimises: adversarial losses, matching of features, and distance of mel spectra."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torchaudio
from torch import Tensor, nn

from speechkit.codecs.discriminators import DacDiscriminator, MultiPeriod, MultiResolution, Verdict

Opinions = tuple[list[Verdict], list[Verdict], list[Verdict]]  # by periods, by resolutions, of DAC

QUIETEST = 1e-7  # magnitude whose logarithm is taken for silence


def hinge_discriminator_loss(real: Sequence[Verdict], fake: Sequence[Verdict]) -> Tensor:
    """What a discriminator minimises: the mean over its parts (Lim and Ye 2017, equation 2)."""
    pairs = zip(real, fake, strict=True)
    return _mean([_below_one(r.score) + _below_one(-f.score) for r, f in pairs])


def hinge_generator_loss(fake: Sequence[Verdict]) -> Tensor:
    """What a generator minimises, clipped where it has fooled enough: the mean over the parts."""
    return _mean([_below_one(f.score) for f in fake])


def least_squares_discriminator_loss(real: Sequence[Verdict], fake: Sequence[Verdict]) -> Tensor:
    """What a discriminator minimises: the sum over its parts (Mao et al. 2017, equation 9, without its half)."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([(1 - r.score).square().mean() + f.score.square().mean() for r, f in pairs]).sum()


def least_squares_generator_loss(fake: Sequence[Verdict]) -> Tensor:
    """What a generator minimises: the sum over the parts."""
    return torch.stack([(1 - f.score).square().mean() for f in fake]).sum()


def feature_matching_loss(real: Sequence[Verdict], fake: Sequence[Verdict]) -> Tensor:
    """Mean absolute differences of features, summed over layers and parts (Kumar et al. 2019, equation 4)."""
    found = [
        (r.detach() - f).abs().mean()
        for one, other in zip(real, fake, strict=True)
        for r, f in zip(one.features, other.features, strict=True)
    ]
    return torch.stack(found).sum()


def _halves(opinions: Opinions) -> tuple[Opinions, Opinions]:
    """Of a batch of two batches, what is said of each."""
    found = [[verdict.halves() for verdict in verdicts] for verdicts in opinions]
    one, other = ([[pair[i] for pair in pairs] for pairs in found] for i in (0, 1))
    return (one[0], one[1], one[2]), (other[0], other[1], other[2])


def _below_one(score: Tensor) -> Tensor:
    return (1 - score).clamp(min=0).mean()


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


class MelLoss(nn.Module):
    """Mean absolute difference of logarithms of mel magnitudes (Hann window, HTK's scale).

    Args:
        rate: Hz.
        n_fft: samples of a transform.
        hop: samples between transforms.
        n_mels: channels.
    """

    def __init__(self, rate: int = 24_000, n_fft: int = 1024, hop: int = 256, n_mels: int = 100) -> None:
        super().__init__()
        if min(n_fft, hop, n_mels) < 1:
            raise ValueError(f"n_fft, hop and n_mels must be at least 1, got {n_fft}, {hop} and {n_mels}")
        self.n_fft, self.hop = n_fft, hop
        self.least = n_fft // 2 + 1  # samples that have a spectrum
        filters = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, n_mels, rate)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.filters: Tensor
        self.window: Tensor

    def spectrum(self, wave: Tensor) -> Tensor:
        """(batch, samples) -> (batch, n_mels, frames)."""
        with torch.autocast(wave.device.type, enabled=False):
            found = torch.stft(wave.float(), self.n_fft, self.hop, window=self.window, return_complex=True).abs()
            return (found.transpose(1, 2) @ self.filters).transpose(1, 2).clamp(min=QUIETEST).log()

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """(batch, samples) each -> a scalar."""
        return (self.spectrum(real) - self.spectrum(fake)).abs().mean()


class Discriminators(nn.Module):
    """All that a codec has to fool.

    Args:
        periods, resolutions: judged by hinge losses; features count divided by the number of discriminators.
        dac: judged by squares; nothing is divided.
        resolutions_weight: of everything that comes from `resolutions`.
        autocast: whether the discriminators compute in bfloat16; on GPUs, whose time they mostly take.
    """

    def __init__(
        self,
        periods: MultiPeriod,
        resolutions: MultiResolution,
        dac: DacDiscriminator,
        resolutions_weight: float = 1.0,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.periods, self.resolutions, self.dac = periods, resolutions, dac
        self.resolutions_weight, self.autocast = resolutions_weight, autocast
        self.kinds = min(periods.kinds, resolutions.kinds)
        self.least = max(part.least for part in (periods, resolutions, dac))  # samples that all of them can hear

    def verdicts(self, wave: Tensor, kind: int) -> Opinions:
        """(batch, samples) -> what all of them say."""
        with torch.autocast(wave.device.type, torch.bfloat16) if self.autocast else nullcontext():
            return self.periods(wave, kind), self.resolutions(wave, kind), self.dac(wave)

    def discriminator_loss(self, real: Tensor, fake: Tensor, kind: int) -> Tensor:
        """(batch, samples) each -> what the discriminators minimise; the gradient does not reach `fake`."""
        one, other = _halves(self.verdicts(torch.cat([real, fake.detach()]), kind))  # half as many kernels to start
        return (
            hinge_discriminator_loss(one[0], other[0])
            + self.resolutions_weight * hinge_discriminator_loss(one[1], other[1])
            + least_squares_discriminator_loss(one[2], other[2])
        )

    def generator_losses(self, real: Tensor, fake: Tensor, kind: int) -> dict[str, Tensor]:
        """(batch, samples) each -> what the generator minimises the sum of: ``adversarial`` and ``features``."""
        with torch.no_grad():  # the discriminators do not learn from it, and `real` has nothing to learn
            one = self.verdicts(real, kind)
        other = self.verdicts(fake, kind)
        by_resolution = self.resolutions_weight * feature_matching_loss(one[1], other[1]) / len(one[1])
        return {
            "adversarial": hinge_generator_loss(other[0])
            + self.resolutions_weight * hinge_generator_loss(other[1])
            + least_squares_generator_loss(other[2]),
            "features": feature_matching_loss(one[0], other[0]) / len(one[0])
            + by_resolution
            + feature_matching_loss(one[2], other[2]),
        }
