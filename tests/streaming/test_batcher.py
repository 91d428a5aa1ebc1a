"""The batcher: sessions of any number, stepped together in one thread, none harming another."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.streaming.batcher import Batcher, Feed
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Event, Final
from speechkit.streaming.session import Session
from speechkit.text import CharTokenizer
from tests.asr.tiny import SYMBOLS, babble, configuration, recognizer

NEVER = EndpointRules(trailing_s=None, silence_s=None, longest_s=None)


class Owner:
    """Keeps what a feed tells, and waits for its end."""

    def __init__(self, batcher: Batcher, session: Session) -> None:
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.over = threading.Event()
        self.feed: Feed = batcher.open(session, self._tell)

    def _tell(self, events: list[Event], error: Exception | None) -> None:
        self.events += events
        self.error = error
        if error is not None or (events and isinstance(events[-1], Done)):
            self.over.set()

    def texts(self) -> list[str]:
        assert self.over.wait(20)
        return [event.text for event in self.events if isinstance(event, Final)]


class Counting:
    """A meter."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waited: list[list[float]] = []
        self.crashes = 0

    def stepped(self, batch: int, failed: int, seconds: float, waited: Sequence[float]) -> None:
        assert len(waited) == batch
        assert min(waited) >= 0
        assert seconds > 0
        self.batches.append(batch)
        self.waited.append(list(waited))
        self.crashes += failed


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Transcriber(recognizer(configuration()), CharTokenizer(SYMBOLS)))


@pytest.fixture
def meter() -> Counting:
    return Counting()


@pytest.fixture
def batcher(engine: Engine, meter: Counting) -> Any:
    made = Batcher(engine, max_batch=4, wait_ms=20, meter=meter)
    yield made
    made.close()
    assert not made.alive


def test_sessions_from_many_threads_say_what_each_says_alone(batcher: Batcher, engine: Engine, meter: Counting) -> None:
    waves = [babble(2 + 0.2 * i, seed=i) for i in range(8)]
    latencies = [(80.0, 0.0)[i % 2] for i in range(8)]
    owners = [Owner(batcher, Session(engine, latency_ms=latency, rules=NEVER)) for latency in latencies]

    def send(owner: Owner, wave: np.ndarray) -> None:
        for piece in np.array_split(wave, 7):
            owner.feed.push(piece)
            time.sleep(0.002)
        owner.feed.do(Session.finish)

    threads = [threading.Thread(target=send, args=pair) for pair in zip(owners, waves, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [owner.texts() for owner in owners]
    with_model = engine.transcriber.transcribe
    assert found == [[with_model(wave, latency_ms=ms).text] for wave, ms in zip(waves, latencies, strict=True)]
    assert 1 < max(meter.batches) <= 4


def begun(batcher: Batcher, engine: Engine, count: int) -> list[Owner]:
    """Sessions of which each is ready once."""
    return [Owner(batcher, Session(engine, rules=NEVER)) for _ in range(count)]


def first_chunk(engine: Engine) -> np.ndarray:
    return babble(1)[: engine.module(engine.context(None)).first]


def test_a_call_waits_for_those_that_come_soon(engine: Engine, meter: Counting) -> None:
    batcher = Batcher(engine, max_batch=8, wait_ms=500, meter=meter)
    for owner in begun(batcher, engine, 5)[:4]:
        owner.feed.push(first_chunk(engine))
        time.sleep(0.02)
    assert meter.batches == []
    time.sleep(0.8)
    batcher.close()
    assert meter.batches == [4]
    assert max(meter.waited[0]) > 0.4
    assert max(meter.waited[0]) - min(meter.waited[0]) > 0.05


@pytest.mark.parametrize(("sessions", "most"), [(3, 8), (4, 3)])
def test_a_call_that_is_full_or_has_everybody_waits_for_nobody(
    engine: Engine, meter: Counting, sessions: int, most: int
) -> None:
    batcher = Batcher(engine, max_batch=most, wait_ms=1000, meter=meter)
    begin = time.monotonic()
    for owner in begun(batcher, engine, sessions)[:3]:
        owner.feed.push(first_chunk(engine))
    while not meter.batches and time.monotonic() < begin + 0.9:
        time.sleep(0.01)
    batcher.close()
    assert meter.batches == [3]


def test_audio_that_came_during_a_call_has_waited_since(
    engine: Engine, meter: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine.step

    def slow(self: Engine, sessions: Sequence[Session]) -> dict[Session, Exception]:
        time.sleep(0.3)
        return real(self, sessions)

    monkeypatch.setattr(Engine, "step", slow)
    batcher = Batcher(engine, max_batch=1, wait_ms=0, meter=meter)
    owners = begun(batcher, engine, 2)
    owners[0].feed.push(first_chunk(engine))
    time.sleep(0.1)
    owners[1].feed.push(first_chunk(engine))
    time.sleep(0.8)
    batcher.close()
    assert meter.batches == [1, 1]
    assert meter.waited[0][0] < 0.15 < meter.waited[1][0]


def test_commands_are_done_in_their_order(batcher: Batcher, engine: Engine) -> None:
    wave = babble(3)
    owner = Owner(batcher, Session(engine, rules=NEVER))
    owner.feed.push(wave[:20_000])
    owner.feed.do(Session.finalize)
    owner.feed.push(wave[20_000:])
    owner.feed.do(Session.finish)
    stream = engine.transcriber.stream()
    assert owner.texts() == [stream.push(wave[:20_000]).segment().text, stream.push(wave[20_000:]).finish().text]


def test_one_session_that_the_model_cannot_bear_ends_alone(
    batcher: Batcher, engine: Engine, meter: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves = [babble(2, seed=i) for i in range(3)]
    sessions = [Session(engine, rules=NEVER) for _ in waves]
    real = Engine._call

    def fragile(self: Engine, context: Any, group: Sequence[Session], work: Any) -> Any:
        if sessions[1] in group:
            raise RuntimeError("out of memory")
        return real(self, context, group, work)

    monkeypatch.setattr(Engine, "_call", fragile)
    owners = [Owner(batcher, session) for session in sessions]
    for owner, wave in zip(owners, waves, strict=True):
        owner.feed.push(wave)
        owner.feed.do(Session.finish)
    assert owners[1].over.wait(20)
    assert "out of memory" in str(owners[1].error)
    for i in (0, 2):
        assert owners[i].texts() == [engine.transcriber.transcribe(waves[i]).text]
    assert meter.crashes == 1
    assert batcher.alive


@pytest.mark.parametrize("what", ["take", "give"])
def test_a_session_that_fails_itself_changes_nothing_for_the_others(
    batcher: Batcher, engine: Engine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Before the call, or after it: a good call is not done again for those who have what came of it."""
    waves = [babble(2, seed=i) for i in range(3)]
    sessions = [Session(engine, rules=NEVER) for _ in waves]

    def refuse(*_: object) -> None:
        raise RuntimeError("no such token")

    monkeypatch.setattr(sessions[1], what, refuse)
    owners = [Owner(batcher, session) for session in sessions]
    for owner, wave in zip(owners, waves, strict=True):
        owner.feed.push(wave)
        owner.feed.do(Session.finish)
    assert owners[1].over.wait(20)
    assert "no such token" in str(owners[1].error)
    assert [owners[i].texts() for i in (0, 2)] == [[engine.transcriber.transcribe(waves[i]).text] for i in (0, 2)]


def test_an_owner_that_fails_harms_nobody_else(batcher: Batcher, engine: Engine) -> None:
    def failing(events: list[Event], error: Exception | None) -> None:
        raise RuntimeError("my loop is closed")

    broken, wave = batcher.open(Session(engine, rules=NEVER), failing), babble(2)
    other = Owner(batcher, Session(engine, rules=NEVER))
    for feed in (broken, other.feed):
        feed.push(wave)
        feed.do(Session.finish)
    assert other.texts() == [engine.transcriber.transcribe(wave).text]
    assert broken.over
    assert batcher.alive


def test_bad_samples_end_their_session_alone(batcher: Batcher, engine: Engine) -> None:
    owners = [Owner(batcher, Session(engine, rules=NEVER)) for _ in range(2)]
    owners[0].feed.push(np.array([np.nan], np.float32))
    owners[1].feed.push(babble(1))
    owners[1].feed.do(Session.finish)
    assert owners[0].over.wait(20)
    assert isinstance(owners[0].error, InputError)
    owners[1].texts()
    assert owners[1].error is None


def test_who_is_gone_is_forgotten(batcher: Batcher, engine: Engine) -> None:
    owner = Owner(batcher, Session(engine))
    batcher.drop(owner.feed)
    owner.feed.push(babble(1))
    time.sleep(0.1)
    assert owner.events == []
    batcher.drop(owner.feed)


@pytest.mark.parametrize(
    ("options", "sentence"), [({"max_batch": 0}, "max_batch must be from 1"), ({"wait_ms": -1}, "wait_ms must be")]
)
def test_options_that_cannot_be_are_refused(engine: Engine, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Batcher(engine, **options)
