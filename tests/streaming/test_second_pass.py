"""Two passes of one model: partials of a stream, and at a segment's end what the model says of the whole of it."""

import json
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.streaming.batcher import Batcher
from speechkit.streaming.command import SetLatency, obey
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial, Refused
from speechkit.streaming.session import Session
from speechkit.text import CharTokenizer
from tests.asr.small_paraformer import paraformer
from tests.server.serving import Talk, heard, serving

RATE = 8000
GRIDS = ((0, 3, 2, 2, 1), (0, 2, 1, 3, 1))
LENGTH = EndpointRules(trailing_s=None, silence_s=None, longest_s=1.5)
NEVER = EndpointRules(trailing_s=None, silence_s=None, longest_s=None)


@pytest.fixture
def engine() -> Engine:
    return Engine(Transcriber(paraformer(GRIDS, rate=RATE).float(), CharTokenizer(" abcdefgh")))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    drawn = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return (0.3 * drawn).numpy().clip(-1, 1)


def run(engine: Engine, wave: np.ndarray, **options: Any) -> list[Event]:
    session, events = Session(engine, **{"rules": NEVER, **options}), []
    for begin in range(0, len(wave), 1111):
        session.push(wave[begin : begin + 1111])
        engine.run([session])
        events += session.events()
    session.finish()
    engine.run([session])
    return events + session.events()


def of(events: Sequence[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_the_final_text_is_that_of_the_whole_segment(engine: Engine) -> None:
    wave = noise(3)
    events = run(engine, wave, again=True)
    (final,) = of(events, Final)
    whole = engine.transcriber.transcribe(wave)
    assert final.text == whole.text
    assert list(final.words) == whole.words
    partials = of(events, Partial)
    assert partials[-1].text == engine.transcriber.transcribe(wave, latency_ms=80).text != final.text
    assert [event.revision for event in partials] == list(range(len(partials)))
    assert final.revision == len(partials)
    assert isinstance(events[-1], Done)


def test_every_segment_is_heard_again_and_the_first_pass_is_as_without(engine: Engine) -> None:
    wave = noise(7, seed=1)
    plain, again = run(engine, wave, rules=LENGTH), run(engine, wave, rules=LENGTH, again=True)
    first, second = of(plain, Final), of(again, Final)
    assert len(first) == len(second) > 3
    assert [final.segment for final in second] == list(range(len(second)))
    assert [e.at_s for e in of(plain, Endpoint)] == [e.at_s for e in of(again, Endpoint)]
    assert [final.reason for final in first] == [final.reason for final in second]
    assert sum(a.text != b.text for a, b in zip(first, second, strict=True)) > 1
    for segment, final in enumerate(first):
        said = [event for event in of(again, Partial) if event.segment == segment]
        assert said[-1].text == final.text


class Early(EndpointRules):
    """Ends a segment after a second, and lets the next one begin a quarter of a second before that."""

    def reason(self, decoded_s: float, spoken_s: float | None) -> str | None:
        return "trailing" if decoded_s >= 1.0 else None

    def border_s(self, decoded_s: float, spoken_s: float | None) -> float:
        return decoded_s - 0.25


def test_second_hearings_part_the_sound_among_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones may overlap: a segment that is over is known to be so after the next one has begun."""
    wave, pieces = noise(6, seed=2), []
    again = engine._again

    def noted(session: Session) -> list[list[float]] | None:
        pieces.append(session.heard)
        return again(session)

    monkeypatch.setattr(engine, "_again", noted)
    finals = of(run(engine, wave, rules=Early(longest_s=None), again=True), Final)
    assert len(finals) == len(pieces) > 4
    assert np.array_equal(np.concatenate(pieces), wave)
    assert all(one.end_s <= other.start_s for one, other in pairwise(finals))


def test_sessions_of_both_kinds_do_not_disturb_each_other(engine: Engine) -> None:
    waves = [noise(2, seed) for seed in range(4)]
    sessions = [Session(engine, rules=NEVER, again=bool(i % 2)) for i in range(4)]
    for session, wave in zip(sessions, waves, strict=True):
        session.push(wave)
        session.finish()
    engine.run(sessions)
    for i, (session, wave) in enumerate(zip(sessions, waves, strict=True)):
        (final,) = of(session.events(), Final)
        assert final.text == engine.transcriber.transcribe(wave, latency_ms=None if i % 2 else 80).text


def order(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    return [(e.segment, e.reason, getattr(e, "text", "")) for e in events if isinstance(e, Final | Endpoint)]


def closing_and_others(engine: Engine) -> tuple[list[Session], list[Session]]:
    """Three sessions whose segments wait for the second hearing, and two that have work for many calls."""
    closing = [Session(engine, rules=NEVER, again=True) for _ in range(3)]
    others = [Session(engine, rules=NEVER) for _ in range(2)]
    for seed, session in enumerate(closing):
        session.push(noise(2, seed))
        session.finish()
    while waiting := [session for session in closing if session.closing is None]:
        engine.step(waiting)
    for session in others:
        session.push(noise(2, 9))
    return closing, others


def test_chunks_come_first_and_one_second_hearing_a_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    closing, others = closing_and_others(engine)
    real, heard_before = engine._again, []

    def again(session: Session) -> Any:
        heard_before.append([other._taken for other in others])
        return real(session)

    monkeypatch.setattr(engine, "_again", again)
    for done in range(1, 4):
        assert engine.step([s for s in closing if not s.done] + others) == {}
        assert [session.done for session in closing] == [i < done for i in range(3)]
        assert heard_before[-1] == [other._taken for other in others]
    assert len(heard_before) == 3
    assert all(before[0] < after[0] for before, after in pairwise([[0], *heard_before]))
    for seed, session in enumerate(closing):
        assert of(session.events(), Final)[0].text == engine.transcriber.transcribe(noise(2, seed)).text


def test_a_second_hearing_that_fails_ends_its_session_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    closing, others = closing_and_others(engine)

    def refuse(rows: object) -> None:
        raise RuntimeError("no such token")

    monkeypatch.setattr(closing[0], "revise", refuse)
    failed = engine.step(closing + others)
    assert {session: str(error) for session, error in failed.items()} == {closing[0]: "no such token"}
    assert all(other._taken > 0 for other in others)


def test_what_others_said_is_told_before_a_second_hearing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = [Session(engine, rules=LENGTH, again=i < 3) for i in range(5)]
    waves = [noise(4 if seed < 3 else 10, seed) for seed in range(5)]
    untold: list[int] = []
    steps: list[str] = []
    real_again, real_call = engine._again, engine._call

    def again(session: Session) -> Any:
        untold.extend(len(other._events) for other in sessions if other is not session)
        steps.append("again")
        return real_again(session)

    def call(*work: Any) -> Any:
        steps.append("call")
        return real_call(*work)

    monkeypatch.setattr(engine, "_again", again)
    monkeypatch.setattr(engine, "_call", call)
    told: list[list[Event]] = [[] for _ in sessions]
    over = [threading.Event() for _ in sessions]
    batcher = Batcher(engine, max_batch=8, wait_ms=0)
    for i, session in enumerate(sessions):

        def tell(events: list[Event], error: Exception | None, i: int = i) -> None:
            told[i] += events
            if error is not None or isinstance(events[-1], Done):
                over[i].set()

        feed = batcher.open(session, tell)
        feed.push(waves[i])
        feed.do(Session.finish)
    assert all(event.wait(60) for event in over)
    batcher.close()
    assert set(untold) == {0}
    busy = steps[: len(steps) - steps[::-1].index("call")]
    assert ("again", "again") not in pairwise(busy), "somebody has chunks until the last call"
    for i, events in enumerate(told):
        alone = run(engine, waves[i], rules=LENGTH, again=i < 3)
        assert order(events) == order(alone)
        said = [event.segment for event in events if isinstance(event, Partial | Final)]
        assert said == sorted(said)


def test_phrases_count_in_both_passes(engine: Engine) -> None:
    booster = engine.booster(["fade"], 30.0)
    events = run(engine, noise(3), again=True, booster=booster)
    assert "fade" in of(events, Partial)[-1].text
    assert "fade" in of(events, Final)[0].text


def test_what_fails_leaves_the_first_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    wave = noise(3)
    expected = of(run(engine, wave), Final)[0].text
    monkeypatch.setattr(engine.model, "encode", fail)
    assert of(run(engine, wave, again=True), Final)[0].text == expected


def test_a_second_hearing_that_finds_nothing_takes_nothing_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = noise(7, seed=1)
    expected = of(run(engine, wave, rules=LENGTH), Final)
    monkeypatch.setattr(engine, "_again", lambda session: [])
    found = of(run(engine, wave, rules=LENGTH, again=True), Final)
    assert [(final.segment, final.text) for final in found] == [(final.segment, final.text) for final in expected]


def test_memory_is_that_of_a_segment() -> None:
    model = paraformer(((0, 10, 5, 4, 1),), rate=RATE)
    engine = Engine(Transcriber(model.float(), CharTokenizer(" abcdefgh")))
    session = Session(engine, rules=LENGTH, again=True)
    for second in range(12):
        session.push(noise(1, second))
        engine.run([session])
        assert len(session._audio) <= 3 * RATE
    session = Session(engine, rules=NEVER, again=True)
    for second in range(70):
        session.push(0 * noise(1, second))
        engine.run([session])
    assert len(session._audio) < 5 * RATE, "a segment of over a minute is not kept"


def test_a_model_of_one_context_has_one_pass() -> None:
    engine = Engine(Transcriber(paraformer((GRIDS[0],), rate=RATE, whole=False).float(), CharTokenizer(" abcdefgh")))
    wave = noise(3)
    assert engine.second(engine.context(None)) is None
    assert of(run(engine, wave), Final)[0].text == engine.transcriber.transcribe(wave).text
    with pytest.raises(InputError, match="no second pass at 80 ms: this is the model's longest"):
        run(engine, wave, again=True)


def test_a_look_ahead_without_a_second_pass_is_refused_and_changes_nothing() -> None:
    engine = Engine(Transcriber(paraformer(GRIDS, rate=RATE, whole=False).float(), CharTokenizer(" abcdefgh")))
    wave, shortest, longest = noise(4), *sorted(engine.transcriber.latencies_ms)
    session = Session(engine, latency_ms=shortest, rules=NEVER, again=True)
    obey(session, SetLatency(longest))
    obey(session, SetLatency(-1))
    session.push(wave[: 2 * RATE])
    session.finalize()
    session.push(wave[2 * RATE :])
    session.finish()
    engine.run([session])
    events = session.events()
    assert ["no second pass" in refused.reason for refused in of(events, Refused)] == [True, False]
    parts = [wave[: 2 * RATE], wave[2 * RATE :]]
    assert [final.text for final in of(events, Final)] == [engine.transcriber.transcribe(part).text for part in parts]


def test_a_client_replaces_what_it_showed(engine: Engine) -> None:
    """Over a websocket, by segment and revision alone."""
    wave = noise(4, seed=2)
    with serving(engine) as running, Talk(running.url) as talk:
        talk.config(rate=RATE, second_pass=True, endpoint={"trailing_s": None, "silence_s": None})
        talk.audio(wave, 3000)
        talk.say(type="close")
        events = talk.rest()
    shown: dict[int, tuple[int, str]] = {}
    for event in events:
        if event["type"] in ("partial", "final") and event["revision"] >= shown.get(event["segment"], (-1, ""))[0]:
            shown[event["segment"]] = (event["revision"], event["text"])
    assert [text for _, text in shown.values()] == [engine.transcriber.transcribe(heard(wave)).text], json.dumps(events)
    partials = [event["text"] for event in events if event["type"] == "partial"]
    assert partials[-1] != shown[0][1]
