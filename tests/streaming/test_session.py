"""Sessions: audio of any rate in any pieces becomes events, alone or among others, in bounded memory."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from speechkit import audio
from speechkit.asr.decoding.words import Timing, Word
from speechkit.asr.transcriber import Transcriber
from speechkit.data.espeak import Espeak
from speechkit.errors import InputError
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial, SpeechEnd, SpeechStart
from speechkit.streaming.session import Session
from speechkit.streaming.state import leaves
from speechkit.streaming.vad import Vad
from speechkit.text import CharTokenizer
from tests.asr.tiny import RATE, SYMBOLS, babble, configuration, recognizer

NEVER = EndpointRules(trailing_s=None, silence_s=None, longest_s=None)


@pytest.fixture(scope="module", params=["rnnt", "ctc"])
def engine(request: pytest.FixtureRequest) -> Engine:
    model = Transcriber(recognizer(configuration()), CharTokenizer(SYMBOLS))
    return Engine(model, decoder=request.param)


def pieces(wave: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    return np.split(wave, np.sort(np.random.default_rng(seed).integers(0, len(wave) + 1, 9)))


def heard(engine: Engine, wave: np.ndarray, seed: int = 0, **options: Any) -> list[Event]:
    session, events = Session(engine, **{"rules": NEVER, **options}), []
    for piece in pieces(wave, seed):
        session.push(piece)
        engine.run([session])
        events += session.events()
    session.finish()
    engine.run([session])
    assert session.done
    return events + session.events()


def timed(words: Sequence[Word]) -> list[tuple[str, float, float]]:
    """Without the confidences, which round differently in other batches."""
    return [(word.text, word.start_s, word.end_s) for word in words]


def finals(events: Sequence[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


@pytest.mark.parametrize("latency", [80.0, 0.0])
def test_a_session_says_what_the_whole_says(engine: Engine, latency: float) -> None:
    wave = babble(4)[: 16_000 * 3 + 77]
    whole = engine.transcriber.transcribe(wave, latency_ms=latency, decoder=engine.decoder)
    assert len(whole.words) > 3
    for seed in range(3):
        (final,) = finals(heard(engine, wave, seed, latency_ms=latency))
        assert (final.text, timed(final.words), final.reason) == (whole.text, timed(whole.words), "end")


def test_other_rates_are_resampled(engine: Engine) -> None:
    wave = babble(3)
    other = np.repeat(wave, 3)
    whole = engine.transcriber.transcribe(other, 3 * RATE, decoder=engine.decoder)
    (final,) = finals(heard(engine, other, rate=3 * RATE))
    assert final.text == whole.text


def test_together_as_alone(engine: Engine) -> None:
    """Streams of different look-aheads, phrases, lengths and phases say in one batch what each says alone."""
    booster = engine.booster(["abc", "de"], 3.0)
    kinds: list[dict[str, Any]] = [
        {"latency_ms": 80.0},
        {"latency_ms": 0.0},
        {"latency_ms": 80.0, "booster": booster},
        {},
    ]
    waves = [babble(2 + 0.3 * i, seed=i) for i in range(8)]
    alone = [timed(finals(heard(engine, wave, **kinds[i % 4]))[0].words) for i, wave in enumerate(waves)]
    sessions = [Session(engine, rules=NEVER, **kinds[i % 4]) for i in range(8)]
    events: list[list[Event]] = [[] for _ in sessions]
    waiting = [pieces(wave, seed=7 + i) for i, wave in enumerate(waves)]
    while any(not session.done for session in sessions):
        for session, left in zip(sessions, waiting, strict=True):
            if left and random.random() < 0.6:
                session.push(left.pop(0))
            elif not left:
                session.finish()
        ready = [session for session in sessions if session.ready and random.random() < 0.8]
        engine.step(ready)
        for session, found in zip(sessions, events, strict=True):
            found += session.events()
    assert [timed(finals(found)[0].words) for found in events] == alone


def test_events_come_in_order_and_take_nothing_back(engine: Engine) -> None:
    rules = EndpointRules(trailing_s=0.3, silence_s=0.6, longest_s=1.0, overlap_s=0.1)
    events = heard(engine, babble(12), rules=rules)
    assert len(finals(events)) > 3
    assert isinstance(events[-1], Done)
    assert [type(event) for event in events].count(Done) == 1
    stable, segment, at = "", 0, 0.0
    for event in events:
        if isinstance(event, Partial):
            assert event.segment == segment
            assert event.text.startswith(stable)
            assert event.text.startswith(event.stable)
            stable = event.stable
            assert event.end_s >= at
            at = event.end_s
        elif isinstance(event, Final):
            assert event.segment == segment
            assert event.text.startswith(stable)
            assert event.text == " ".join(word.text for word in event.words)
            segment, stable = segment + 1, ""
    starts = [word.start_s for final in finals(events) for word in final.words]
    assert starts == sorted(starts)


def test_finalize_ends_a_segment_with_what_was_pushed_before_it(engine: Engine) -> None:
    wave = babble(4)
    session = Session(engine, rules=NEVER)
    session.push(wave[:20_011])
    session.finalize()
    session.push(wave[20_011:])  # the engine has not run yet
    session.finish()
    engine.run([session])
    stream = engine.transcriber.stream(decoder=engine.decoder)
    expected = [stream.push(wave[:20_011]).segment(), stream.push(wave[20_011:]).finish()]
    found = finals(session.events())
    assert [timed(final.words) for final in found] == [timed(said.words) for said in expected]
    assert [final.reason for final in found] == ["finalize", "end"]


@pytest.mark.parametrize("rules", [EndpointRules(None, None, 1.0), EndpointRules(0.3, 0.3, None), EndpointRules()])
def test_what_comes_all_at_once_ends_where_it_would_have_ended(engine: Engine, rules: EndpointRules) -> None:
    """Though the end of the stream is known before the first call."""
    wave = np.concatenate([babble(3, seed=1), np.zeros(3 * RATE, np.float32), babble(3, seed=2)])
    expected = finals(heard(engine, wave, rules=rules))
    session = Session(engine, rules=rules)
    session.push(wave[: 5 * RATE])
    session.finalize()
    session.push(wave[5 * RATE :])
    session.finish()
    engine.run([session])
    cut = finals(session.events())
    session = Session(engine, rules=rules)
    session.push(wave)
    session.finish()
    engine.run([session])
    found = finals(session.events())
    assert [(final.text, final.reason) for final in found] == [(final.text, final.reason) for final in expected]
    assert len(cut) >= len(found)


def test_look_ahead_and_phrases_change_at_a_segments_border(engine: Engine) -> None:
    booster = engine.booster(["abc"], 5.0)
    wave = babble(2)
    session = Session(engine, rules=NEVER, latency_ms=80)
    session.push(wave)
    session.set_latency(0)
    session.set_booster(booster)
    assert session.context == (4, 1)
    session.finalize()
    session.push(wave)
    session.finish()
    engine.run([session])
    assert session.context == (4, 0)
    first, second = finals(session.events())
    assert first.text == engine.transcriber.transcribe(wave, latency_ms=80, decoder=engine.decoder).text
    boosted = engine.transcriber.transcribe(
        wave, latency_ms=0, decoder=engine.decoder, hotwords=["abc"], hotword_weight=5.0
    )
    assert second.text == boosted.text
    with pytest.raises(InputError, match="no context of this model has a look-ahead"):
        session.set_latency(-1)


@pytest.mark.parametrize("count", [0, 1, 159, 160])
def test_little_audio(engine: Engine, count: int) -> None:
    events = heard(engine, babble(1)[:count])
    assert isinstance(events[-1], Done)
    assert events[-1].seconds == pytest.approx(count / RATE, abs=1e-3)


def test_bad_samples_are_refused_and_the_rest_goes_on(engine: Engine) -> None:
    session = Session(engine)
    with pytest.raises(InputError, match="NaN"):
        session.push(np.array([0.0, np.nan], np.float32))
    session.push(babble(1))
    session.finish()
    engine.run([session])
    assert session.done
    with pytest.raises(ValueError, match="was finished"):
        session.push(babble(1))


def test_memory_does_not_grow(engine: Engine) -> None:
    session = Session(engine, rules=EndpointRules(trailing_s=0.3, longest_s=2.0))
    sizes, most = set(), 0
    for _ in range(200):
        session.push(babble(0.5))
        engine.run([session])
        session.events()
        sizes.add(sum(leaf.nbytes for leaf in leaves(session.state)))
        most = max(most, len(session._audio))
    assert len(sizes) == 1
    assert most < 3 * RATE


def test_much_at_once_is_copied_seldom(engine: Engine) -> None:
    """A session that was given minutes at once does not move what waits of them at every call."""
    session, buffers = Session(engine, rules=EndpointRules(trailing_s=0.3, longest_s=2.0)), set()
    session.push(np.zeros(120 * RATE, np.float32))
    kept = []
    while session.ready:
        engine.step([session])
        if id(session._audio) not in buffers:
            buffers.add(id(session._audio))
            kept.append(session._audio)  # so that no other gets its number
    assert len(kept) < 60, "of 750 calls"


class Scripted:
    """An engine whose decoder emits a word a while after its sound, if the segment heard the sound begin."""

    rate, timing, tokenizer = 8000, Timing(40.0), CharTokenizer([" ", "a", "b", "c"])

    def __init__(self, words: Sequence[tuple[float, str]], delay: float) -> None:
        self.words, self.delay = words, delay
        self.shape = SimpleNamespace(first=320, chunk=320, lookahead=0)

    def context(self, latency_ms: float | None) -> tuple[int, int]:
        return (0, 0)

    def module(self, context: tuple[int, int]) -> Any:
        return self.shape

    def greedy(self, booster: Any, context: Any) -> None:
        return None

    def init_state(self, context: Any, greedy: Any) -> None:
        return None

    def run(self, session: Session) -> None:
        while session.ready:
            before = session._taken / self.rate
            work = session.take()
            now = session._taken / self.rate
            start = session._border / self.rate
            rows = []
            for at, word in self.words:
                if start <= at and (
                    before < at + self.delay <= now or (work.last and at < now and before < at + self.delay)
                ):
                    step = (before - start) * 1000 / self.timing.step_ms
                    rows += [[self.tokenizer.pieces.index(letter), step, 0.0] for letter in " " + word]
            session.give(rows, -(-len(work.samples) // 320), work.last)


def spoken(words: Sequence[tuple[float, str]], seconds: float, rules: EndpointRules, delay: float = 0.3) -> list[Event]:
    engine = Scripted(words, delay)
    session, events = Session(cast("Engine", engine), rules=rules), []
    for _ in range(round(seconds * 10)):
        session.push(np.zeros(800, np.float32))
        engine.run(session)
        events += session.events()
    session.finish()
    engine.run(session)
    return events + session.events()


def test_no_word_is_lost_or_said_twice_at_a_border() -> None:
    """Whenever the next word begins: in the segment, in the silence that ends it, or while that is being noticed."""
    for gap in np.arange(0.4, 5.0, 0.04):
        events = spoken([(0.5, "a"), (0.5 + gap, "a")], 8, EndpointRules())
        said = [word for final in finals(events) for word in final.words]
        assert [word.text for word in said] == ["a", "a"], f"{gap:.2f} s apart"


def test_silence_after_text_ends_a_segment() -> None:
    events = spoken([(0.5, "a"), (0.9, "b"), (4.0, "c")], 8, EndpointRules(trailing_s=1.2, silence_s=None))
    assert [(final.text, final.reason) for final in finals(events)] == [("a b", "trailing"), ("c", "trailing")]
    ends = [event for event in events if isinstance(event, Endpoint)]
    assert [event.reason for event in ends] == ["trailing", "trailing"]
    assert ends[0].at_s == pytest.approx(0.9 + 0.3 + 1.2, abs=0.7)
    kinds = [type(event) for event in events if not isinstance(event, Partial)]
    assert kinds == [SpeechStart, Final, SpeechEnd, Endpoint] * 2 + [Done]


def test_silence_without_text_is_an_endpoint_without_a_final() -> None:
    events = spoken([], 6, EndpointRules(silence_s=2.0))
    assert {type(event) for event in events} == {Endpoint, Done}
    assert {event.reason for event in events if isinstance(event, Endpoint)} == {"silence"}


def test_a_long_segment_ends_in_a_pause_or_at_last_wherever_it_is() -> None:
    steady = [(0.4 + 0.2 * i, "a") for i in range(50)]
    rules = EndpointRules(longest_s=4.0)
    found = finals(spoken(steady, 12, rules))
    assert [word.text for final in found for word in final.words] == ["a"] * 50
    assert found[0].reason == "length"
    assert found[0].end_s <= 4.0 * rules.hard + 0.4
    paused = [(at, word) for at, word in steady if not 4.3 < at < 4.9]
    found = finals(spoken(paused, 12, rules))
    assert found[0].words[-1].end_s <= 4.9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"trailing_s": 0.0}, "trailing_s must be over 0"), ({"overlap_s": -1.0}, "overlap_s must be from 0 to 10")],
)
def test_rules_that_cannot_be_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        EndpointRules(**options)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A sentence, with nothing before and after it."""
    pytest.importorskip("silero_vad")
    pytest.importorskip("espeakng_loader")
    with Espeak() as espeak:
        said = espeak.say("the old man walked slowly over the bridge", "en-us")
        wave = audio.prepare(said, espeak.sample_rate, RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.02)
    return wave[loud[0] : loud[-1]]


@pytest.mark.parametrize("size", [700, 16_000, 10**6])
def test_voice_activity_tells_where_speech_begins_and_ends(engine: Engine, speech: np.ndarray, size: int) -> None:
    quiet = np.zeros(24_000, np.float32)
    wave = np.concatenate([quiet, speech, quiet, quiet])
    session = Session(engine, vad=Vad(), rules=EndpointRules(trailing_s=None, silence_s=None, longest_s=None))
    for start in range(0, len(wave), size):
        session.push(wave[start : start + size])
        engine.run([session])
    session.finish()
    engine.run([session])
    events = session.events()
    starts = [event.at_s for event in events if isinstance(event, SpeechStart)]
    ends = [event.at_s for event in events if isinstance(event, SpeechEnd)]
    assert starts == pytest.approx([1.5], abs=0.2)
    assert ends == pytest.approx([1.5 + len(speech) / RATE], abs=0.2)


def test_no_segment_ends_while_somebody_speaks(engine: Engine, speech: np.ndarray) -> None:
    session = Session(engine, vad=Vad(), rules=EndpointRules(trailing_s=0.3, silence_s=0.3, longest_s=None))
    session.push(np.concatenate([speech, np.zeros(32_000, np.float32)]))
    engine.run([session])
    points = [event.at_s for event in session.events() if isinstance(event, Endpoint)]
    assert points or engine.decoder == "rnnt"  # this one has a token for every step of silence too
    assert min(points, default=9.0) > len(speech) / RATE - 0.3
