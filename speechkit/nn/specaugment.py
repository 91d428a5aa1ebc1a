"""SpecAugment: spans of frequency and of time set to zero while a model trains."""

import torch
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Masks log-mel features in training; in evaluation it does nothing.

    A span of at most W has width floor(u W) and start floor(u' (length - width)), u and u' uniform from [0, 1). Source:
    Park et al., Interspeech 2019; widths relative to the utterance: Park et al., ICASSP 2020.

    Args:
        freq_masks: spans of mel bands per utterance, each at most `freq_width` wide.
        time_masks: spans of frames per utterance, each at most the share `time_width` of the utterance.
        joined: frames that lie side by side in a feature; a span of bands is masked in all of them.
        generator: what to draw from; None is torch's own.
    """

    def __init__(
        self,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 10,
        time_width: float = 0.05,
        joined: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(freq_masks, freq_width, time_masks) < 0 or not 0 <= time_width <= 1 or joined < 1:
            raise ValueError(f"masks must not be negative and time_width be from 0 to 1, got {time_width}")
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width = time_masks, time_width
        self.joined, self.generator = joined, generator

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Masks whole rows of bands and frames.

        Args:
            mel: (batch, frames, joined * n_mels); not changed in place.
            lengths: (batch,) valid frames.

        Returns:
            The same shape.
        """
        if not self.training:
            return mel
        frames, n_mels = mel.shape[1], mel.shape[2] // self.joined
        bands = torch.full_like(lengths, n_mels)
        widest = torch.full_like(lengths, min(self.freq_width, n_mels))
        hidden_bands = self._spans(bands, widest, self.freq_masks, n_mels).repeat(1, self.joined)
        hidden_frames = self._spans(lengths, (lengths * self.time_width).floor(), self.time_masks, frames)
        return mel.masked_fill(hidden_frames[:, :, None] | hidden_bands[:, None, :], 0)

    def _spans(self, lengths: Tensor, widest: Tensor, count: int, size: int) -> Tensor:
        """(batch,) lengths and greatest widths -> (batch, size) bool, true inside one of the spans."""
        draw = torch.rand(2, len(lengths), count, generator=self.generator, device=lengths.device)
        width = (draw[0] * widest[:, None]).floor()
        start = (draw[1] * (lengths[:, None] - width)).floor()
        position = torch.arange(size, device=lengths.device)
        inside = (position >= start[..., None]) & (position < (start + width)[..., None])
        return inside.any(dim=1)
