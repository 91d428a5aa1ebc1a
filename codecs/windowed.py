"""Decoding in windows, for decoders that hear everything at once: bounded memory, and no joint to be heard."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from speechkit.codecs.codec_model import CodecModel

WINDOW_S = 3.0  # what the published decoders were trained on
BESIDE = 49  # codes at either side of a window that only help, as far as the published decoders' convolutions see:
# 3 of the first one, 8 of the residual blocks, 36 of the twelve ConvNeXt blocks, and 2 of the transform.
FADE_S = 0.1  # over which one window becomes the next


class Windowed:
    """Windows of codes that overlap; from the middle of each overlap on, the later one is heard.

    Args:
        model: decodes a window.
        window_s: its length; longer where less than half of it would be used.
        beside: codes at either side whose samples are not used.
        fade_s: over which two windows are mixed, in equal parts of amplitude.
    """

    def __init__(
        self, model: CodecModel, window_s: float = WINDOW_S, beside: int = BESIDE, fade_s: float = FADE_S
    ) -> None:
        self.model, per_second = model, model.codes_per_second
        self.beside, self.fade = beside, max(1, round(fade_s * per_second))  # codes
        self.step = max(1, max(round(window_s * per_second), 4 * beside) - 2 * beside - self.fade)
        self.size = self.step + 2 * beside + self.fade

    @torch.inference_mode()
    def run(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces (codes,), or (codes, codebooks), -> pieces (samples,), ``hop`` for every code."""
        waiting: Tensor | None = None
        begun = False
        tail: Tensor | None = None  # (fade * hop,) of the window before
        for piece in pieces:
            waiting = piece if waiting is None else torch.cat([waiting, piece])
            while len(waiting) > self.size:
                wave = self._decoded(waiting[: self.size])
                first = self.beside * self.model.hop if begun else 0
                last = (self.size - self.beside) * self.model.hop
                yield self._joined(wave[first : last - self.fade * self.model.hop], tail)
                tail = wave[last - self.fade * self.model.hop : last]
                # The next window's used part begins where this tail does.
                waiting = waiting[self.size - 2 * self.beside - self.fade :]
                begun = True
        if waiting is not None and len(waiting):
            wave = self._decoded(waiting)
            yield self._joined(wave[self.beside * self.model.hop if begun else 0 :], tail)

    def _decoded(self, codes: Tensor) -> Tensor:
        wave, _ = self.model.decode(codes[None], torch.tensor([len(codes)], device=codes.device))
        return wave[0]

    def _joined(self, wave: Tensor, tail: Tensor | None) -> Tensor:
        if tail is None:
            return wave
        count = min(len(tail), len(wave))
        up = (torch.arange(count, device=wave.device) + 0.5) / count
        mixed = wave[:count] * up + tail[:count] * (1 - up)
        return torch.cat([mixed, wave[count:]])
