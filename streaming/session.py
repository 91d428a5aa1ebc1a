"""One stream of audio becoming events, without I/O, clocks or threads: what is computed for it is computed elsewhere.

session = Session(engine, rate=44_100)
session.push(samples)
engine.run([session])
for event in session.events(): ...
"""

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from speechkit import audio
from speechkit.asr.acoustic import Context
from speechkit.asr.segment import Segment
from speechkit.asr.transcript import Transcript
from speechkit.errors import InputError
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial, Refused, SpeechEnd, SpeechStart
from speechkit.streaming.vad import RATE, Vad
from speechkit.text import join_words

if TYPE_CHECKING:
    from speechkit.streaming.engine import Boosters, Engine


LONGEST_AGAIN_S = 60.0  # a longer segment is not heard a second time


class Work(NamedTuple):
    """Samples for one call of the model."""

    samples: np.ndarray
    last: bool  # the segment ends with them


class Closing(NamedTuple):
    """A segment that is over, and what it is so far."""

    reason: str
    border: int  # sample of the stream at which the next one begins
    length_s: float  # from the segment's border to the next one's
    said: Transcript


class Session:
    """Audio in pieces of any size and rate, events out; memory does not grow with the length of the stream.

    A segment ends where the rules say so, where `finalize` or `finish` is called, and nowhere else. The model knows
    nothing of the segments before; at an end in silence the next segment begins a little before it was noticed and
    hears that much again, so that no word is lost that had begun (`EndpointRules`). Look-ahead and phrases change
    where a segment begins.

    Args:
        engine: computes.
        rate: of what is pushed, Hz.
        latency_ms: look-ahead; the engine's where none is given.
        rules: when a segment ends.
        booster: phrases to favour, of `Engine.booster`.
        vad: says from the sound itself where speech begins and ends; no segment ends while somebody speaks, but of
            the longest length. Without it speech is where the decoder emits words.
        again: whether a segment that is over is heard a second time, whole, by the engine's second model or, where it
            has none, at the model's longest context.

    Raises:
        InputError: the rate, look-ahead or voice activity detection cannot be had, or a second hearing would be the
            same as the first.
    """

    def __init__(
        self,
        engine: "Engine",
        rate: int | None = None,
        latency_ms: float | None = None,
        rules: EndpointRules | None = None,
        booster: "Boosters | None" = None,
        vad: Vad | None = None,
        again: bool = False,
    ) -> None:
        self.engine, self.rules = engine, rules or EndpointRules()
        self._again = again
        self.rate = engine.rate
        if vad is not None and self.rate != RATE:
            raise InputError(f"voice activity detection takes {RATE} Hz, and this model {self.rate}")
        self._vad, self._sounded = vad, 0  # samples that it has heard
        self._resampler = audio.StreamResampler(self.rate if rate is None else rate, self.rate)
        self._audio = np.zeros(0, np.float32)  # from `_audio_start` on: what may be heard again, then what waits
        self._audio_start = self._taken = 0  # samples of the stream
        self._ends: deque[tuple[int, str]] = deque()  # samples at which segments end, and why
        self._over = self._done = False
        self._events: list[Event] = []
        self.segments = self._revision = 0
        self.closing: Closing | None = None  # waits for its second hearing
        self._next = (self._context(latency_ms), booster)
        self._enter(0)

    def _enter(self, border: int) -> None:
        """Begins a segment at a sample of the stream."""
        self.context, self.booster = self._next
        self.greedy = self.engine.greedy(self.booster, self.context)
        self.state: Any = self.engine.init_state(self.context, self.greedy)
        self._border = self._taken = border
        self._steps = 0
        self._segment = Segment(self.engine.tokenizer, self.engine.timing, border / self.rate)
        self._said = ""
        self._drop(border)

    # What the client does.

    def push(self, samples: np.ndarray) -> None:
        """Takes (samples,) float in [-1, 1].

        Raises:
            InputError: as `audio.checked`.
        """
        if self._over:
            raise ValueError("this session was finished: begin another one")
        self._append(self._resampler.push(audio.checked(samples)))

    def set_latency(self, latency_ms: float) -> None:
        """Changes the look-ahead at the next segment.

        Raises:
            InputError: there is none so short, or at this one a second hearing would be the same as the first.
        """
        self._next = (self._context(latency_ms), self._next[1])

    def set_booster(self, booster: "Boosters | None") -> None:
        """Changes the phrases to favour at the next segment."""
        self._next = (self._next[0], booster)

    def finalize(self) -> None:
        """Ends the segment with what has been pushed; nothing happens where there was nothing."""
        self._end_with("finalize")

    def finish(self) -> None:
        """Ends the stream with what has been pushed."""
        if not self._over:
            self._over = True
            self._end_with("end")

    def refuse(self, reason: str) -> None:
        """Tells that a wish cannot be met."""
        self._events.append(Refused(reason))

    def events(self) -> list[Event]:
        """What happened since the last call."""
        found, self._events = self._events, []
        return found

    @property
    def done(self) -> bool:
        """Whether the stream is over and everything said."""
        return self._done

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that were pushed but not yet heard."""
        return (self._end - self._taken) / self.rate

    # What the engine does.

    @property
    def ready(self) -> bool:
        """Whether there is work."""
        if self.closing is not None:
            return True
        return not self._done and (bool(self._ends) or self._end - self._taken >= self._wanted)

    def take(self) -> Work:
        """The next samples, at most a call's."""
        begin = self._taken - self._audio_start
        end = self._ends[0][0] if self._ends else self._end
        size = min(self._wanted, end - self._taken)
        self._taken += size
        samples = self._audio[begin : begin + size]
        if self._vad is not None and self._taken > self._sounded:  # after a border some audio is heard again
            for what, at in self._vad.push(samples[size - (self._taken - self._sounded) :]):
                self._events.append(SpeechStart(at) if what == "start" else SpeechEnd(at))
            self._sounded = self._taken
        return Work(samples, bool(self._ends) and self._taken == end)

    def give(self, rows: list[list[float]], steps: int, last: bool) -> None:
        """What came of the work: emitted tokens, how many encoder steps were decoded, whether the segment ended."""
        self._steps += steps
        self._segment.append(rows, self._heard_s)
        if self._vad is None and not self._said and self._segment.text:
            self._events.append(SpeechStart(self._segment.words(self._heard_s)[0].start_s))
        if last:
            end, why = self._ends.popleft()
            self._close(why, end)
            return
        self._tell()
        decoded = self._steps * self.engine.timing.step_ms / 1000
        spoken = self._spoken_s()
        ends_here = bool(self._ends) and self._ends[0][0] == self._taken
        reason = None if ends_here else self.rules.reason(decoded, spoken)
        if reason != "length" and self._vad is not None and self._vad.speaking:
            reason = None
        if reason == "length":  # somebody may be speaking: what the model holds back is said first
            self._ends.appendleft((self._taken, reason))
        elif reason:
            border = self._border + round(self.rules.border_s(decoded, spoken) * self.rate)
            self._close(reason, min(border, self._taken))
        kept = self._taken - self._replayed
        self._drop(min(kept, self._border) if self._hears_again else kept)

    @property
    def heard(self) -> np.ndarray:
        """Samples of the segment that waits for its second hearing, up to the next one: no word is said in both."""
        end = self._taken if self.closing is None else self.closing.border
        return self._audio[self._border - self._audio_start : end - self._audio_start]

    def revise(self, rows: list[list[float]] | None) -> None:
        """What came of the second hearing, emitted tokens as of `give`; None: nothing, and the first one counts."""
        closing, self.closing = self.closing, None
        if closing is None:
            raise ValueError("no segment waits for a second hearing")
        said = closing.said
        if rows is not None:
            segment = self.engine.segment_again(self._border / self.rate)
            segment.append(rows, closing.length_s)
            again = segment.transcript(closing.length_s)
            said = again if again.text else said  # what was shown cannot be taken back altogether
        self._closed(closing._replace(said=said))

    def _context(self, latency_ms: float | None) -> Context:
        """The context of a look-ahead, at which what was promised can be kept."""
        context = self.engine.context(latency_ms)
        if self._again and self.engine.second(context) is None:
            longest = self.engine.model.latency_ms(context)
            raise InputError(
                f"there is no second pass at {longest:g} ms: this is the model's longest look-ahead, "
                "and it would hear the same again"
            )
        return context

    @property
    def _hears_again(self) -> bool:
        return self._again and self._heard_s <= LONGEST_AGAIN_S

    def _spoken_s(self) -> float | None:
        """Up to when in the segment there were words, or, after words, somebody spoke; None where there were none."""
        last = self._segment.last_s
        if last is not None and self._vad is not None:
            last = max(last, self._vad.last_s or 0.0)
        return None if last is None else last - self._border / self.rate

    def _close(self, reason: str, border: int) -> None:
        """Ends the segment; what it said is heard again first, if that is wanted."""
        length_s = (border - self._border) / self.rate
        closing = Closing(reason, border, length_s, self._segment.transcript(self._heard_s))
        if self._hears_again and closing.said.text:
            self._tell()
            self.closing = closing
        else:
            self._closed(closing)

    def _closed(self, closing: Closing) -> None:
        """Tells the end of a segment and begins the next one."""
        reason, border, _, said = closing
        at = round((self._taken if reason in ("finalize", "end") else border) / self.rate, 3)
        if said.text:
            start, end = said.words[0].start_s, said.words[-1].end_s
            self._events.append(Final(self.segments, said.text, tuple(said.words), start, end, reason, self._revision))
            if self._vad is None:
                self._events.append(SpeechEnd(end))
        if reason != "end":
            self._events.append(Endpoint(self.segments, reason, at))
        self.segments += bool(said.text)
        self._revision = 0
        if reason == "end":
            self._done = True
            self._events.append(Done(round(self._end / self.rate, 3), self.segments))
            return
        self._enter(border)

    def _tell(self) -> None:
        text = self._segment.text
        if text != self._said:
            self._said = text  # never empty again: nothing is taken back
            stable = join_words(word.text for word in self._segment.settled)
            words, heard = tuple(self._segment.words(self._heard_s)), round(self._taken / self.rate, 3)
            revision, self._revision = self._revision, self._revision + 1
            self._events.append(Partial(self.segments, text, stable, words[0].start_s, heard, words, revision))

    @property
    def _heard_s(self) -> float:
        """Seconds of the segment."""
        return (self._taken - self._border) / self.rate

    @property
    def _wanted(self) -> int:
        """Samples of the next call."""
        module = self.engine.module(self.context)
        return module.first if self._taken == self._border else module.chunk

    @property
    def _end(self) -> int:
        """Samples of the stream so far."""
        return self._audio_start + len(self._audio)

    @property
    def _replayed(self) -> int:
        """Samples before the last one taken that a new segment may begin with."""
        module = self.engine.module(self.context)
        return round(2 * self.rules.overlap_s * self.rate) + module.lookahead + 2 * module.chunk

    def _end_with(self, reason: str) -> None:
        self._append(self._resampler.flush())
        self._ends.append((self._end, reason))

    def _append(self, samples: np.ndarray) -> None:
        self._audio = np.concatenate([self._audio, samples.astype(np.float32, copy=False)])

    def _drop(self, before: int) -> None:
        """Forgets audio before a sample of the stream, when that is an eighth of what is kept: hours may be waiting."""
        count = before - self._audio_start
        if count > 0 and 8 * count >= len(self._audio):
            self._audio, self._audio_start = self._audio[count:].copy(), before
