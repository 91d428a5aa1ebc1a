"""One stream of audio becoming text."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from speechkit import audio
from speechkit.asr.acoustic import AcousticModel, Context, Greedy
from speechkit.asr.decoding.words import Timing, Word
from speechkit.asr.segment import Segment
from speechkit.asr.transcript import Transcript
from speechkit.streaming.chain import Chain
from speechkit.streaming.stream import Stream
from speechkit.text import Tokenizer


class TranscriptStream:
    """Audio in, text out as it becomes known; greedy, so what was said is never taken back.

    `segment` ends a segment and begins another, which may have another look-ahead. Texts and words are those of the
    segment; times are counted from the beginning of the stream.

    Args:
        model, tokenizer: the recogniser.
        context: look-ahead of the first segment.
        greedy: the decoder for a context; `InputError` where the model cannot stream at it.
        rate: of what is pushed, Hz.
    """

    def __init__(
        self,
        model: AcousticModel,
        tokenizer: Tokenizer,
        context: Context,
        greedy: Callable[[Context], Greedy],
        rate: int,
    ) -> None:
        self.model, self.tokenizer, self._greedy = model, tokenizer, greedy
        self._resampler = audio.StreamResampler(rate, model.rate)
        self._samples = 0
        self._over = False
        self._enter(context)

    def _enter(self, context: Context) -> None:
        """Begins a segment, of which the model knows nothing yet."""
        self._stream = Stream(Chain(self.model.streaming(context), self._greedy(context)))
        self.context = context
        self._border = self._samples  # where the segment begins
        self._segment = Segment(
            self.tokenizer, Timing(self.model.step_ms, self.model.lead_ms), self._border / self.model.rate
        )

    @property
    def settled(self) -> list[Word]:
        """The words that are complete, because another one has begun after them."""
        return self._segment.settled

    @property
    def open(self) -> str:
        """The word that may still grow, as far as it is known; empty where there is none."""
        return self._segment.open

    @property
    def text(self) -> str:
        """The text so far."""
        return self._segment.text

    @property
    def seconds(self) -> float:
        """Seconds of audio that were heard so far."""
        return self._samples / self.model.rate

    @property
    def words(self) -> list[Word]:
        """The words so far; the last may still grow."""
        return self._segment.words(self._heard)

    @torch.inference_mode()
    def push(self, samples: np.ndarray) -> "TranscriptStream":
        """(samples,) float in [-1, 1], any number of them; returns itself, with `text` and `words` up to date.

        Raises:
            InputError: as `audio.checked`.
        """
        if self._over:
            raise ValueError("this stream was finished: begin another one")
        self._take(self._resampler.push(audio.checked(samples)))
        return self

    @torch.inference_mode()
    def finish(self) -> Transcript:
        """Ends the stream: everything that was held back is decoded."""
        if not self._over:
            self._over = True
            self._close()
        return self._transcript()

    @torch.inference_mode()
    def segment(self, latency_ms: float | None = None) -> Transcript:
        """Ends a segment as `finish` does and begins the next one: what was said since the last border.

        Args:
            latency_ms: look-ahead of the next segment, as in `Transcriber.stream`; None is the one so far.

        Raises:
            InputError: the model has no such look-ahead.
        """
        if self._over:
            raise ValueError("this stream was finished: begin another one")
        context = self.context if latency_ms is None else self.model.context_at(latency_ms)
        self._greedy(context)
        self._close()
        said = self._transcript()
        self._enter(context)
        return said

    def _close(self) -> None:
        self._take(self._resampler.flush())
        self._append(self._stream.flush())

    def _transcript(self) -> Transcript:
        return self._segment.transcript(self._heard)

    @property
    def _heard(self) -> float:
        """Seconds of the segment."""
        return (self._samples - self._border) / self.model.rate

    def _take(self, samples: np.ndarray) -> None:
        self._samples += len(samples)
        if len(samples):
            self._append(self._stream.push(torch.from_numpy(samples).to(self.model.device)[:, None]))

    def _append(self, pieces: Sequence[Tensor]) -> None:
        self._segment.append([row for piece in pieces for row in piece.tolist()], self._heard)
