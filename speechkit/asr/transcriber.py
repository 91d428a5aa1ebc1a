"""Audio to text with a trained recogniser: whole, or as a stream."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit import audio
from speechkit.asr.conformer import Context
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.search import beam_search
from speechkit.asr.decoding.words import Word, words
from speechkit.asr.model import Recognizer
from speechkit.errors import InputError
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk
from speechkit.streaming.stream import Stream
from speechkit.text import Tokenizer

WHOLE_SECONDS = 30.0  # longer audio runs in blocks of the stream, which gives the same result in bounded memory
BLOCK_SECONDS = 8.0

Audio = str | Path | np.ndarray | Tensor


@dataclass(frozen=True)
class Transcript:
    """What was said."""

    text: str
    words: list[Word]  # with start and end in seconds, and confidence
    seconds: float
    hypotheses: list[Hypothesis] = field(default_factory=list, repr=False)  # best first

    @property
    def confidence(self) -> float:
        """Mean confidence of the words, 0 where there are none."""
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else 0.0


class Transcriber:
    """A recogniser with its tokenizer: what `speechkit.load` gives for recognition models."""

    def __init__(self, model: Recognizer, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @property
    def rate(self) -> int:
        """Sampling rate that the model takes, in Hz."""
        return self.model.front.sample_rate

    @property
    def latencies_ms(self) -> list[float]:
        """The look-aheads that the model offers, longest first; empty where it needs full context."""
        limited = [context for context in self.model.contexts if min(context) >= 0 and self.model.encoder.causal]
        return sorted((self.model.latency_ms(context) for context in limited), reverse=True)

    def context(self, latency_ms: float | None) -> Context:
        """The context for a latency; without one, the model's first."""
        return self.model.contexts[0] if latency_ms is None else self.model.context_at(latency_ms)

    def greedy(self, decoder: str | None = None, hotwords: PhraseBooster | None = None) -> CtcGreedy | RnntGreedy:
        """A greedy decoder: ``rnnt`` or ``ctc``; without a name the first that the model has."""
        decoder = decoder or self.model.decoders[0]
        if decoder == "rnnt" and self.model.predictor is not None and self.model.joiner is not None:
            return RnntGreedy(self.model.predictor, self.model.joiner, booster=hotwords)
        if decoder == "ctc" and self.model.ctc is not None:
            return CtcGreedy(self.model.ctc, booster=hotwords)
        raise InputError(f"this model has the decoders {', '.join(self.model.decoders)}, got {decoder!r}")

    def booster(self, hotwords: Sequence[str | tuple[str, float]] | None, weight: float = 2.0) -> PhraseBooster | None:
        """Phrases as plain text, checked against the tokenizer."""
        return PhraseBooster(self.tokenizer, list(hotwords), weight) if hotwords else None

    @torch.inference_mode()
    def transcribe(
        self,
        source: Audio,
        rate: int | None = None,
        latency_ms: float | None = None,
        decoder: str | None = None,
        beam: int = 1,
        hotwords: Sequence[str | tuple[str, float]] | None = None,
        hotword_weight: float = 2.0,
        nbest: int = 1,
    ) -> Transcript:
        """Text of a file, or of samples in [-1, 1] at `rate`, under the masks of the context for `latency_ms`.

        With ``beam > 1`` the search keeps so many hypotheses and gives the `nbest` best of them.
        """
        wave = self._samples(source, rate)
        booster = self.booster(hotwords, hotword_weight)
        steps = self.encode(wave, self.context(latency_ms))
        if beam > 1:
            found = beam_search(self.model, decoder or self.model.decoders[0], steps, beam, booster)[:nbest]
        else:
            greedy = self.greedy(decoder, booster)
            found = [hypothesis(greedy(steps[None], torch.tensor([len(steps)], device=steps.device)))]
        return self.transcript(found, len(wave) / self.rate)

    def transcript(self, found: list[Hypothesis], seconds: float) -> Transcript:
        """Hypotheses, best first, as text and words."""
        best = found[0]
        return Transcript(
            self.tokenizer.decode(best.tokens),
            words(best, self.tokenizer, self.model.step_ms, seconds=seconds),
            seconds,
            found,
        )

    def encode(self, wave: Tensor, context: Context) -> Tensor:
        """(samples,) -> (steps, dim). Long audio runs in blocks, with the same result."""
        if len(wave) <= WHOLE_SECONDS * self.rate or not self.latencies_ms:
            return self.model.encode(wave[None], torch.tensor([len(wave)], device=wave.device), context)[0][0]
        return torch.cat(list(self.encode_blocks(wave[:, None].split(self.rate), context)))

    def encode_blocks(self, pieces: Iterable[Tensor], context: Context) -> Iterator[Tensor]:
        """Pieces (samples, 1) -> encoder steps (steps, dim) as they come, many attention chunks a call."""
        chunk_seconds = (context[1] + 1) * self.model.step_ms / 1000
        chunks = max(1, round(BLOCK_SECONDS / chunk_seconds))
        stream = Stream(Chain(self.model.front, self.model.encoder.at(context, chunks)))
        for piece in pieces:
            yield from stream.push(piece)
        yield from stream.flush()

    def stream(
        self,
        latency_ms: float | None = None,
        rate: int | None = None,
        decoder: str | None = None,
        hotwords: Sequence[str | tuple[str, float]] | None = None,
        hotword_weight: float = 2.0,
    ) -> "TranscriptStream":
        """A stream of samples at `rate` (the model's where none is given) with a look-ahead of at most `latency_ms`."""
        if not self.latencies_ms:
            raise InputError("this model was trained with full context: it cannot stream; use transcribe() instead")
        greedy = self.greedy(decoder, self.booster(hotwords, hotword_weight))
        return TranscriptStream(self, self.context(latency_ms), greedy, rate or self.rate)

    def _samples(self, source: Audio, rate: int | None) -> Tensor:
        if isinstance(source, str | Path):
            wave = audio.read(source, self.rate)
        else:
            wave = audio.prepare(np.asarray(source), rate or self.rate, self.rate)
        return torch.from_numpy(wave).to(self.model.front.window.device)


class TranscriptStream:
    """One stream of audio becoming text; greedy, so what was said is never taken back."""

    def __init__(self, owner: Transcriber, context: Context, greedy: CtcGreedy | RnntGreedy, rate: int) -> None:
        self.owner = owner
        self._stream = Stream(Chain(*owner.model.streaming(context).modules, greedy))
        self._resampler = audio.StreamResampler(rate, owner.rate)
        self._hypothesis = Hypothesis([], [], [], 0.0)
        self._samples = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return self.owner.tokenizer.decode(self._hypothesis.tokens)

    @property
    def words(self) -> list[Word]:
        """The words so far; the last may still grow."""
        return words(self._hypothesis, self.owner.tokenizer, self.owner.model.step_ms)

    @torch.inference_mode()
    def push(self, samples: np.ndarray) -> "TranscriptStream":
        """(samples,) float in [-1, 1], any number of them; returns itself, with `text` and `words` up to date."""
        self._take(self._resampler.push(audio.checked(samples)))
        return self

    @torch.inference_mode()
    def finish(self) -> Transcript:
        """Ends the stream: everything that was held back is decoded."""
        self._take(self._resampler.flush())
        self._append(self._stream.flush())
        return self.owner.transcript([self._hypothesis], self._samples / self.owner.rate)

    def _take(self, samples: np.ndarray) -> None:
        self._samples += len(samples)
        if len(samples):
            device = self.owner.model.front.window.device
            self._append(self._stream.push(torch.from_numpy(samples).to(device)[:, None]))

    def _append(self, pieces: list[Tensor]) -> None:
        for piece in pieces:
            self._hypothesis = self._hypothesis.extended(piece)


def hypothesis(emitted: Any) -> Hypothesis:
    """What a greedy decoder emitted for one row, a `Chunk` of (token, step, log-probability), as a hypothesis."""
    chunk: Chunk = emitted
    return Hypothesis([], [], [], 0.0).extended(chunk.values[0, : int(chunk.lengths[0])])
