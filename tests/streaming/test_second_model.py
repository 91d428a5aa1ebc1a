"""A second model for second passes: it hears finished segments whole, in threads and in processes."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.streaming.command import Finish, Settings
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial
from speechkit.streaming.pool import Pool, ThreadPool
from speechkit.streaming.processes import ProcessPool
from speechkit.streaming.session import Session
from speechkit.text import CharTokenizer
from tests.asr.small_paraformer import paraformer
from tests.streaming.test_second_pass import GRIDS, LENGTH, NEVER, RATE, noise, of, run


def two_models() -> Engine:
    """The second one whole alone, of other steps and pieces."""
    first = Transcriber(paraformer(GRIDS, rate=RATE, whole=False).float(), CharTokenizer(" abcdefgh"))
    second = Transcriber(paraformer((), "conformer", RATE).float(), CharTokenizer(" stuvwxyz"))
    return Engine(first, second=second)


@pytest.mark.parametrize("latency_ms", [None, 40])
def test_the_final_text_is_the_second_model_s_of_the_segment_s_samples(latency_ms: float | None) -> None:
    engine, wave = two_models(), noise(7, seed=1)
    events = run(engine, wave, rules=LENGTH, again=True, latency_ms=latency_ms)
    borders = [0.0, *(event.at_s for event in of(events, Endpoint))]
    assert len(of(events, Final)) == len(borders) > 3
    for final, begin, end in zip(of(events, Final), borders, [*borders[1:], 7.0], strict=True):
        whole = engine.again.transcribe(wave[round(begin * RATE) : round(end * RATE)])
        assert final.text == whole.text
        assert len(whole.words) > 1
        for word, alone in zip(final.words, whole.words, strict=True):
            expected = replace(alone, start_s=alone.start_s + begin, end_s=alone.end_s + begin)
            assert word.text == alone.text
            assert (word.start_s, word.end_s) == pytest.approx((expected.start_s, expected.end_s), abs=1e-3)
            assert word.confidence == pytest.approx(alone.confidence, abs=1e-4)
        said = [event for event in of(events, Partial) if event.segment == final.segment]
        assert final.revision == len(said) > 0
        assert set("".join(event.text for event in said)) <= set(" abcdefgh")
    plain = run(engine, wave, rules=LENGTH, latency_ms=latency_ms)
    assert set("".join(final.text for final in of(plain, Final))) <= set(" abcdefgh")


def test_samples_are_kept_for_the_second_model_alone() -> None:
    engine, rules = two_models(), EndpointRules(trailing_s=None, silence_s=None, longest_s=4.0)
    most = []
    for again in (True, False):
        session, kept = Session(engine, rules=rules, again=again), 0
        for piece in noise(12).reshape(48, -1):
            session.push(piece)
            engine.run([session])
            kept = max(kept, len(session._audio))
        most.append(kept)
    assert most[1] < 2 * RATE < most[0] < 6 * RATE


def test_phrases_are_those_of_each_model_s_pieces() -> None:
    engine = two_models()
    with pytest.raises(InputError, match="fade"):
        engine.booster(["fade"])
    engine.again.tokenizer = CharTokenizer(" abcdefgh"[::-1])
    booster = engine.booster(["fade"], 30.0)
    events = run(engine, noise(3), again=True, booster=booster)
    assert "fade" in of(events, Partial)[-1].text
    assert of(events, Final)[0].text == engine.again.transcribe(noise(3), hotwords=["fade"], hotword_weight=30.0).text


def test_models_of_two_rates_are_refused() -> None:
    first, second = (Transcriber(paraformer(rate=rate).float(), CharTokenizer(" abcdefgh")) for rate in (RATE, 16_000))
    with pytest.raises(InputError, match="second model takes 16000 Hz, and the first 8000"):
        Engine(first, second=second)


def test_threads_and_processes_have_the_second_model() -> None:
    engine, wave = two_models(), noise(3)
    pools: list[Pool] = [ThreadPool(engine), ProcessPool(1, two_models)]
    try:
        for pool in pools:
            events: list[Event] = []
            over = threading.Event()

            def tell(some: list[Event], error: Exception | None, events: Any = events, over: Any = over) -> None:
                events.extend(some)
                if error is not None or isinstance(some[-1], Done):
                    over.set()

            handle = pool.open(Settings(rules=NEVER, again=True), tell)
            handle.push(wave)
            handle.do(Finish())
            assert over.wait(60)
            assert [final.text for final in of(events, Final)] == [engine.again.transcribe(wave).text]
    finally:
        for pool in pools:
            pool.close()
