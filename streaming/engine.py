"""A recogniser that steps many sessions at once: those of one look-ahead through one call."""

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from speechkit.asr.acoustic import Context, Greedy
from speechkit.asr.decoding.boosting import PhraseBooster, Phrases
from speechkit.asr.decoding.words import Timing
from speechkit.asr.segment import Segment
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.streaming.state import Chunk, Streaming, split, stack
from speechkit.text import Tokenizer

if TYPE_CHECKING:
    from speechkit.streaming.session import Session, Work

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """What came of one session's work."""

    tokens: list[list[float]]  # rows of token, step and log-probability
    steps: int  # of the encoder that were decoded
    last: bool  # the segment is over
    state: tuple[Any, Any]  # the encoder's and the decoder's


class Boosters(NamedTuple):
    """Phrases to favour, in the tokens of each hearing's model."""

    first: PhraseBooster
    again: PhraseBooster


class Engine:
    """Everything that sessions share.

    Args:
        transcriber: the recogniser, PyTorch's or an export.
        decoder: ``rnnt``, ``ctc`` or ``nar``; the first that the model has where none is given.
        latency_ms: look-ahead of sessions that ask for none; the longest that the model streams with where none is
            given.
        second: hears segments that are over a second time, with its first context and decoder; the same recogniser
            does, at its longest context, where none is given.

    Raises:
        InputError: the model cannot stream, has no such decoder or look-ahead, or takes another rate than the second.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        decoder: str | None = None,
        latency_ms: float | None = None,
        second: Transcriber | None = None,
    ) -> None:
        self.transcriber, self.model = transcriber, transcriber.model
        self.again = second or transcriber
        if self.again.rate != self.rate:
            raise InputError(f"the second model takes {self.again.rate} Hz, and the first {self.rate}: they must agree")
        if not transcriber.latencies_ms:
            raise InputError(
                "this model was trained with full context: it cannot stream, and what is served are streams, uploaded "
                "files too; serve one with a limited look-ahead, with this as its second_model if you like, or hear "
                "whole recordings with `speechkit transcribe`"
            )
        self.decoder = decoder or self.model.decoders[0]
        self._plain: dict[Context, Greedy] = {}
        self._modules: dict[Context, Streaming[Any]] = {}
        self._compiling = threading.Lock()
        self.default_ms = max(transcriber.latencies_ms) if latency_ms is None else latency_ms
        self.greedy(None, self.context(self.default_ms))

    @property
    def rate(self) -> int:
        """Sampling rate that the model takes, in Hz."""
        return self.model.rate

    @property
    def timing(self) -> Timing:
        """Of the model's steps."""
        return Timing(self.model.step_ms, self.model.lead_ms)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.transcriber.tokenizer

    def context(self, latency_ms: float | None) -> Context:
        """The context of the longest look-ahead that is not over `latency_ms`.

        Raises:
            InputError: there is none.
        """
        return self.model.context_at(self.default_ms if latency_ms is None else latency_ms)

    def second(self, context: Context) -> Context | None:
        """The context at which a segment is heard a second time; None where that would be the same again."""
        if self.again is not self.transcriber:
            return self.again.model.contexts[0]
        longest = max(self.model.contexts, key=self.model.latency_ms)
        return longest if self.model.latency_ms(longest) > self.model.latency_ms(context) else None

    def module(self, context: Context) -> Streaming[Any]:
        """The encoder at a context, samples to steps."""
        if context not in self._modules:
            self._modules[context] = self.model.streaming(context)
        return self._modules[context]

    def segment_again(self, start_s: float) -> Segment:
        """What the second hearing of a segment says, nothing so far; times count from `start_s` of the stream."""
        model = self.again.model
        return Segment(self.again.tokenizer, Timing(model.step_ms, model.lead_ms), start_s)

    def booster(self, phrases: Phrases | None, weight: float = 2.0) -> Boosters | None:
        """Phrases to favour, checked against the tokenizers; errors as `Transcriber.booster`."""
        with self._compiling:  # one at a time: Python shares one core between this and the model's thread
            first = self.transcriber.booster(phrases, weight)
            again = first if self.again is self.transcriber else self.again.booster(phrases, weight)
        return None if first is None or again is None else Boosters(first, again)

    def greedy(self, booster: Boosters | None, context: Context) -> Greedy:
        """The first hearing's decoder at a context, with phrases to favour or without."""
        if booster is not None:
            return self.transcriber.greedy(self.decoder, booster.first, context)
        if context not in self._plain:
            self._plain[context] = self.transcriber.greedy(self.decoder, context=context)
        return self._plain[context]

    @torch.inference_mode()
    def init_state(self, context: Context, greedy: Greedy) -> tuple[Any, Any]:
        """State of a segment that has not begun: the encoder's and the decoder's."""
        return self.module(context).init_state(1), greedy.init_state(1)

    def warm(self) -> None:
        """Runs every look-ahead once, so that the first stream does not wait, and what cannot be run is known.

        Raises:
            InputError: the model fails.
        """
        for latency_ms in self.transcriber.latencies_ms:
            try:
                module = self.module(context := self.context(latency_ms))
                greedy = self.greedy(None, context)
                state = self.init_state(context, greedy)
                x = Chunk(torch.zeros(1, module.chunk, 1), torch.tensor([module.first]), torch.tensor([False]))
                with torch.inference_mode():
                    greedy.step(module.step(x, state[0])[0], state[1])
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"the model cannot be run at {latency_ms:g} ms: {error!r:.300}") from error
        if self.again is not self.transcriber:
            try:
                with torch.inference_mode():
                    self._whole(np.zeros(self.rate, np.float32), self.second(context))
            except Exception as error:
                raise InputError(f"the second model cannot be run: {error!r:.300}") from error

    def run(self, sessions: Iterable["Session"]) -> None:
        """Does all the work that sessions have; what fails for one is raised."""
        sessions = list(sessions)
        while ready := [session for session in sessions if session.ready]:
            for error in self.step(ready).values():
                raise error

    @torch.inference_mode()
    def step(self, sessions: Sequence["Session"]) -> dict["Session", Exception]:
        """One call for each of the sessions, which must be ready: those of one look-ahead together.

        Of those that wait for a second hearing only the first has it, after all calls: a minute of sound takes long.

        Returns:
            The sessions that failed, and why. Where a call for several fails, each is tried alone: one that the model
            cannot bear ends by itself.
        """
        failed: dict[Session, Exception] = {}
        first = [session for session in sessions if session.closing is None]
        closing = [session for session in sessions if session.closing is not None]
        for context in dict.fromkeys(session.context for session in first):
            group, work = self._taken([session for session in first if session.context == context], failed)
            for session, found in zip(group, self._tried(context, group, work), strict=True):
                try:
                    if isinstance(found, Exception):
                        raise found
                    session.state = found.state
                    session.give(found.tokens, found.steps, found.last)
                except Exception as error:
                    failed[session] = error
        for session in closing[:1]:
            try:
                session.revise(self._again(session))
            except Exception as error:
                failed[session] = error
        return failed

    def _again(self, session: "Session") -> list[list[float]] | None:
        """What a whole segment says the second time; None where the model cannot bear it."""
        try:
            return self._whole(session.heard, self.second(session.context), session.booster)
        except Exception:
            log.exception("a segment could not be heard a second time")
            return None

    def _whole(self, samples: np.ndarray, context: Context, booster: Boosters | None = None) -> list[list[float]]:
        """Rows of token, step and log-probability of the second hearing."""
        model = self.again.model
        wave = torch.from_numpy(samples).to(model.device)[None]
        steps, lengths = model.encode(wave, torch.tensor([wave.shape[1]], device=wave.device), context)
        decoder = self.decoder if self.again is self.transcriber else None
        emitted = self.again.greedy(decoder, booster and booster.again, context)(steps, lengths)
        rows: list[list[float]] = emitted.values[0, : int(emitted.lengths[0])].tolist()
        return rows

    def _taken(
        self, sessions: Sequence["Session"], failed: "dict[Session, Exception]"
    ) -> "tuple[list[Session], list[Work]]":
        """Those that gave work, and it; the others are noted as failed."""
        work = {}
        for session in sessions:
            try:
                work[session] = session.take()
            except Exception as error:
                failed[session] = error
        return list(work), list(work.values())

    def _tried(
        self, context: Context, sessions: Sequence["Session"], work: Sequence["Work"]
    ) -> "Sequence[Result | Exception]":
        """Results of all in one call; where it fails, those of each alone or why it has none. No session is changed."""
        if not sessions:
            return []
        try:
            return self._call(context, sessions, work)
        except Exception as error:
            if len(sessions) == 1:
                return [error]
        return [self._tried(context, [one], [item])[0] for one, item in zip(sessions, work, strict=True)]

    def _call(self, context: Context, sessions: Sequence["Session"], work: Sequence["Work"]) -> "list[Result]":
        module = self.module(context)
        values = torch.zeros(len(work), module.chunk, 1)
        for row, item in enumerate(work):
            values[row, : len(item.samples), 0] = torch.from_numpy(item.samples)
        lengths = torch.tensor([len(item.samples) for item in work])
        x = Chunk(values, lengths, torch.tensor([item.last for item in work]))
        y, new = module.step(
            Chunk(*(part.to(self.model.device) for part in x)), stack([session.state[0] for session in sessions])
        )
        states, found = split(new), {}
        for greedy in {id(session.greedy): session.greedy for session in sessions}.values():
            rows = [row for row, session in enumerate(sessions) if session.greedy is greedy]
            part = Chunk(y.values[rows], y.lengths[rows], y.last[rows])
            before = stack([sessions[row].state[1] for row in rows])
            emitted, after = greedy.step(part, before)
            heard = (after.steps - before.steps).tolist()
            counts = zip(emitted.lengths.tolist(), heard, part.last.tolist(), strict=True)
            for row, tokens, (count, steps, last), state in zip(
                rows, emitted.values, counts, split(after), strict=True
            ):
                found[row] = Result(tokens[:count].tolist(), steps, last, (states[row], state))
        return [found[row] for row in range(len(sessions))]
