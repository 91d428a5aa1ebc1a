"""Audio to text with a trained recogniser: whole, in blocks of a stream that give the same text, or live."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.asr.acoustic import AcousticModel, Context, Greedy
from speechkit.asr.decoding.boosting import PhraseBooster, Phrases
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.scoring import Scorer
from speechkit.asr.decoding.search import GreedySearch, Search
from speechkit.asr.decoding.words import Timing
from speechkit.asr.model import Recognizer
from speechkit.asr.pauses import windows
from speechkit.asr.pieces import Audio, Pieces
from speechkit.asr.transcript import Transcript, joined, transcript
from speechkit.asr.transcript_stream import TranscriptStream
from speechkit.errors import InputError
from speechkit.streaming.stream import Stream
from speechkit.text import Tokenizer

__all__ = ["Transcriber", "Transcript", "TranscriptStream"]

WHOLE_SECONDS = 30.0  # longer audio runs in blocks of the stream, which gives the same result in bounded memory
BLOCK_SECONDS = 8.0
WINDOW_SECONDS = 60.0  # a model that needs full context hears longer audio in windows, cut at pauses


class Transcriber:
    """A recogniser with its tokenizer: what `speechkit.load` gives for recognition models."""

    def __init__(self, model: AcousticModel, tokenizer: Tokenizer) -> None:
        model.eval()
        self.model: AcousticModel = model
        self.tokenizer = tokenizer

    @property
    def network(self) -> Recognizer:
        """The model where it is a `Recognizer`.

        Raises:
            InputError: it is an export, or another model.
        """
        if not isinstance(self.model, Recognizer):
            trained = self.trained  # an export says that it is one
            raise InputError(
                f"this can be had of models with CTC or a transducer alone, not of a {type(trained).__name__}"
            )
        return self.model

    @property
    def trained(self) -> nn.Module:
        """The model with its weights, whatever it is.

        Raises:
            InputError: it is an export.
        """
        model: Any = self.model
        if next(model.parameters(), None) is None:
            raise InputError("this model is an export: take the release that it was made of")
        found: nn.Module = model
        return found

    @property
    def rate(self) -> int:
        """Sampling rate that the model takes, in Hz."""
        return self.model.rate

    @property
    def latencies_ms(self) -> list[float]:
        """The look-aheads that the model can stream with, longest first; empty where it needs full context."""
        limited = [context for context in self.model.contexts if self.model.streams(context)]
        return sorted((self.model.latency_ms(context) for context in limited), reverse=True)

    def context(self, latency_ms: float | None) -> Context:
        """The context of the longest look-ahead that is not over `latency_ms`; without one, the model's first."""
        return self.model.contexts[0] if latency_ms is None else self.model.context_at(latency_ms)

    def greedy(
        self, decoder: str | None = None, hotwords: PhraseBooster | None = None, context: Context | None = None
    ) -> Greedy:
        """A greedy decoder at a context; without a name the first that the model has, without a context its first."""
        context = self.model.contexts[0] if context is None else context
        return self.model.greedy(decoder or self.model.decoders[0], context, hotwords)

    def search(
        self,
        decoder: str | None = None,
        beam: int = 1,
        hotwords: PhraseBooster | None = None,
        scorers: Sequence[Scorer[Any]] = (),
        context: Context | None = None,
    ) -> Search:
        """A beam search at a context, the model's first where none is given, or a greedy decoder where the beam is 1.

        Raises:
            InputError: the model has no such decoder, the beam is not from 1 to 1000, or a greedy decoder gets scorers.
        """
        if scorers and beam < 2:
            raise InputError("a language model needs a beam search: give a beam of 2 or more")
        if beam == 1:
            return GreedySearch(self.greedy(decoder, hotwords, context))
        boosters: list[Scorer[Any]] = [] if hotwords is None else [hotwords]
        context = self.model.contexts[0] if context is None else context
        return self.model.beam(decoder or self.model.decoders[0], context, beam, [*boosters, *scorers])

    def booster(self, hotwords: Phrases | None, weight: float = 2.0) -> PhraseBooster | None:
        """Phrases as plain text, checked against the tokenizer."""
        phrases = [hotwords] if isinstance(hotwords, str) else list(hotwords or [])
        return PhraseBooster(self.tokenizer, phrases, weight) if phrases else None

    @torch.inference_mode()
    def transcribe(
        self,
        source: Audio,
        rate: int | None = None,
        latency_ms: float | None = None,
        decoder: str | None = None,
        beam: int = 1,
        hotwords: Phrases | None = None,
        hotword_weight: float = 2.0,
        nbest: int = 1,
        scorers: Sequence[Scorer[Any]] = (),
    ) -> Transcript:
        """Text under the masks of the context for `latency_ms`; memory does not grow with the length of the audio.

        A model that needs full context hears more than a minute in windows of at most a minute, cut at pauses.

        Args:
            source: a file, samples in [-1, 1] at `rate`, or an iterator of pieces of them such as `audio.blocks`.
            rate: of samples, Hz; the model's where none is given.
            latency_ms: look-ahead; the model's first context where none is given.
            decoder: ``rnnt``, ``ctc`` or ``nar``; the first that the model has where none is given.
            beam: hypotheses that a search keeps; 1 is greedy decoding.
            hotwords: phrases to favour, or pairs of a phrase and the factor on `hotword_weight`.
            hotword_weight: nats per token.
            nbest: how many of the hypotheses to give; of audio in windows there is one.
            scorers: what else counts in a search, such as `NgramScorer`; needs a beam.

        Raises:
            InputError: the model cannot do what an option asks for, or audio that cannot be used: see `audio.blocks`.
        """
        context = self.context(latency_ms)
        search = self.search(decoder, beam, self.booster(hotwords, hotword_weight), scorers, context)
        if not 1 <= nbest <= beam:
            raise InputError(f"a beam of {beam} gives from 1 to {beam} best hypotheses, got {nbest}")
        pieces = Pieces(source, self.rate, rate)
        found = self._decode(pieces, context, search, nbest)
        timing = Timing(self.model.step_ms, self.model.lead_ms)
        return transcript(found, self.tokenizer, timing, pieces.samples / self.rate)

    def encode_blocks(self, pieces: Iterable[Tensor], context: Context) -> Iterator[Tensor]:
        """Pieces (samples, 1) -> encoder steps (steps, dim) as they come, many attention chunks a call."""
        chunks = max(1, round(BLOCK_SECONDS * self.rate / self.model.streaming(context).chunk))
        stream = Stream(self.model.streaming(context, chunks))
        for piece in pieces:
            yield from stream.push(piece)
        yield from stream.flush()

    def stream(
        self,
        latency_ms: float | None = None,
        rate: int | None = None,
        decoder: str | None = None,
        hotwords: Phrases | None = None,
        hotword_weight: float = 2.0,
    ) -> TranscriptStream:
        """A stream of samples at `rate` (the model's where none is given) with a look-ahead of at most `latency_ms`."""
        limited = [context for context in self.model.contexts if self.model.streams(context)]
        if not limited:
            raise InputError("this model was trained with full context: it cannot stream, only hear whole recordings")
        context = limited[0] if latency_ms is None else self.context(latency_ms)
        booster = self.booster(hotwords, hotword_weight)

        def greedy(context: Context) -> Greedy:
            if not self.model.streams(context):
                raise InputError(f"the model's context {list(context)} is not limited: it cannot stream")
            return self.greedy(decoder, booster, context)

        return TranscriptStream(self.model, self.tokenizer, context, greedy, self.rate if rate is None else rate)

    def _decode(self, pieces: Iterator[np.ndarray], context: Context, search: Search, nbest: int) -> list[Hypothesis]:
        """Hypotheses, best first: short audio under masks, long audio in blocks of the stream or in windows."""
        limit = WHOLE_SECONDS if self.model.streams(context) else WINDOW_SECONDS
        head = np.zeros(0, np.float32)
        for piece in pieces:
            head = np.concatenate([head, piece])
            if len(head) > limit * self.rate:
                break
        else:
            return self._whole(head, context, search, nbest)
        everything = chain([head], pieces)
        if not self.model.streams(context):
            return [self._windowed(everything, context, search)]
        state = search.init_state()
        for steps in self.encode_blocks((self._tensor(piece)[:, None] for piece in everything), context):
            state = search.hear(steps, state)
        return search.nbest(state, nbest)

    def _whole(self, wave: np.ndarray, context: Context, search: Search, nbest: int) -> list[Hypothesis]:
        """Hypotheses of (samples,) under the masks of a context."""
        state = search.init_state()
        if len(wave):
            tensor = self._tensor(wave)
            lengths = torch.tensor([len(wave)], device=tensor.device)
            steps, step_lengths = self.model.encode(tensor[None], lengths, context)
            state = search.hear(steps[0, : int(step_lengths[0])], state)  # beyond them lies padding
        return search.nbest(state, nbest)

    def _windowed(self, pieces: Iterable[np.ndarray], context: Context, search: Search) -> Hypothesis:
        grid = round(self.rate * self.model.step_ms / 1000)
        begin, parts = 0, []
        for window in windows(pieces, self.rate, WINDOW_SECONDS, grid):
            parts.append((begin // grid, self._whole(window, context, search, 1)[0]))
            begin += len(window)
        return joined(parts, self.tokenizer)

    def _tensor(self, wave: np.ndarray) -> Tensor:
        return torch.from_numpy(wave).to(self.model.device)
