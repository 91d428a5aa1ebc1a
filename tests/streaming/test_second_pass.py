"""Two passes of one model: partials of a stream, and at a segment's end what the model says of the whole of it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
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
