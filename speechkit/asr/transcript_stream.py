"""One stream of audio becoming text."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from speechkit import audio
from speechkit.asr.acoustic import AcousticModel
from speechkit.asr.conformer import Context
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.words import Word, words
from speechkit.asr.transcript import Transcript, plain, transcript
from speechkit.errors import InputError
from speechkit.streaming.chain import Chain
from speechkit.streaming.stream import Stream
from speechkit.text import WORD_START, Tokenizer


class TranscriptStream:
    """Audio in, text out as it becomes known; greedy, so what was said is never taken back.

    `segment` ends a segment and begins another, which may have another look-ahead. Texts and words are those of the
    segment; times are counted from the beginning of the stream.

    Args:
        model, tokenizer: the recogniser.
        context: look-ahead of the first segment.
        greedy: decoder of one of its heads.
        rate: of what is pushed, Hz.

    Attributes:
        settled: the words that are complete, because another one has begun after them.
    """

    def __init__(
        self, model: AcousticModel, tokenizer: Tokenizer, context: Context, greedy: CtcGreedy | RnntGreedy, rate: int
    ) -> None:
        self.model, self.tokenizer, self._greedy = model, tokenizer, greedy
        self._resampler = audio.StreamResampler(rate, model.rate)
        self._samples = 0
        self._over = False
        self._enter(context)

    def _enter(self, context: Context) -> None:
        """Begins a segment, of which the model knows nothing yet."""
        self.context = context
        self.settled: list[Word] = []
        self._stream = Stream(Chain(self.model.streaming(context), self._greedy))
        self._found = Hypothesis([], [], [], 0.0)  # its lists grow in place: a copy a chunk adds up over hours
        self._begin = 0  # where the tokens of the open word begin
        self._border = self._samples  # where the segment begins

    @property
    def open(self) -> str:
        """The word that may still grow, as far as it is known; empty where there is none."""
        return plain(self.tokenizer.decode(self._found.tokens[self._begin :]))

    @property
    def text(self) -> str:
        """The text so far."""
        return " ".join([word.text for word in self.settled] + [self.open] * bool(self.open))

    @property
    def seconds(self) -> float:
        """Seconds of audio that were heard so far."""
        return self._samples / self.model.rate

    @property
    def words(self) -> list[Word]:
        """The words so far; the last may still grow."""
        return self.settled + self._words(self._begin, None)

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
        if min(context) < 0:
            raise InputError(f"the model's context {list(context)} is not limited: it cannot stream")
        self._close()
        said = self._transcript()
        self._enter(context)
        return said

    def _close(self) -> None:
        self._take(self._resampler.flush())
        self._append(self._stream.flush())

    def _transcript(self) -> Transcript:
        found = replace(self._found, score=sum(self._found.log_probs))
        said = transcript([found], self.tokenizer, self.model.step_ms, self._heard)
        return replace(said, words=[self._shifted(word) for word in said.words])

    @property
    def _heard(self) -> float:
        """Seconds of the segment."""
        return (self._samples - self._border) / self.model.rate

    def _words(self, begin: int, end: int | None) -> list[Word]:
        found = words(self._part(begin, end), self.tokenizer, self.model.step_ms, seconds=self._heard)
        return [self._shifted(word) for word in found]

    def _shifted(self, word: Word) -> Word:
        """With times from the beginning of the stream."""
        start = self._border / self.model.rate
        return replace(word, start_s=round(start + word.start_s, 3), end_s=round(start + word.end_s, 3))

    def _take(self, samples: np.ndarray) -> None:
        self._samples += len(samples)
        if len(samples):
            self._append(self._stream.push(torch.from_numpy(samples).to(self.model.device)[:, None]))

    def _append(self, pieces: Sequence[Tensor]) -> None:
        before = len(self._found.tokens)
        for token, step, log_prob in (row for piece in pieces for row in piece.tolist()):
            self._found.tokens.append(int(token))
            self._found.steps.append(int(step))
            self._found.log_probs.append(log_prob)
        if len(self._found.tokens) > before:
            self._settle()

    def _settle(self) -> None:
        """Moves the words before the last one to those that are complete."""
        begin = self._last_word()
        if begin == self._begin:
            return
        complete = self._words(self._begin, begin)
        if complete:
            next_s = self._border / self.model.rate + self._found.steps[begin] * self.model.step_ms / 1000
            following = max(complete[-1].start_s, round(next_s, 3))
            complete[-1] = replace(complete[-1], end_s=min(complete[-1].end_s, following))
        self.settled += complete
        self._begin = begin

    def _last_word(self) -> int:
        """Where the last word with letters begins."""
        pieces = [self.tokenizer.pieces[token] for token in self._found.tokens[self._begin :]]
        letters = False
        for i in range(len(pieces) - 1, 0, -1):
            letters = letters or pieces[i] not in (" ", WORD_START)
            if letters and pieces[i] != " " and (pieces[i].startswith(WORD_START) or pieces[i - 1] == " "):
                return self._begin + i
        return self._begin

    def _part(self, begin: int, end: int | None) -> Hypothesis:
        found = self._found
        return Hypothesis(found.tokens[begin:end], found.steps[begin:end], found.log_probs[begin:end], 0.0)
