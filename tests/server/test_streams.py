"""Streams over websockets: what is said, in which order, and what is refused."""

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speechkit.streaming.engine import Engine
from tests.asr.tiny import babble
from tests.server.serving import TOKEN, Running, Talk, eventually, heard, make_engine, pcm, serving, texts


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, streams=16, idle_s=5) as found:
        yield found


def rising(numbers: list[int]) -> bool:
    return all(a < b for a, b in pairwise([0, *numbers]))


@pytest.mark.parametrize("size", [2, 640, 64_000])
@pytest.mark.parametrize("latency", [80.0, 0.0])
def test_a_stream_says_what_the_model_says_of_the_whole(running: Running, size: int, latency: float) -> None:
    wave = babble(1 if size == 2 else 5, seed=3)
    with Talk(running.url) as talk:
        ready = talk.config(latency_ms=latency)
        talk.audio(wave, size)
        talk.say(type="close")
        events = talk.rest()
    assert ready["latency_ms"] == latency
    assert texts(events) == [running.text(heard(wave), latency)]
    assert events[-1] | {"seq": 0} == {"type": "done", "seq": 0, "seconds": len(wave) / 16_000, "segments": 1}
    assert talk.closed[0] == 1000


def test_ready_says_whether_a_second_pass_comes_and_none_is_promised_in_vain(running: Running) -> None:
    wave = babble(3, seed=3)
    with Talk(running.url) as talk:
        assert talk.config(latency_ms=0)["second_pass"] is False
    with Talk(running.url) as talk:
        ready = talk.config(latency_ms=0, second_pass=True)
        talk.audio(wave)
        talk.say(type="close")
        events = talk.rest()
    assert ready["second_pass"] is True
    assert texts(events) == [running.text(heard(wave), 80)]
    with Talk(running.url) as talk:
        refused = talk.config(second_pass=True)
        talk.rest()
    assert (refused["type"], refused["code"], refused["fatal"]) == ("error", "bad_input", True)
    assert "no second pass at 80 ms" in refused["message"]
    assert talk.closed[0] == 1007


def test_events_come_in_order(running: Running) -> None:
    with Talk(running.url) as talk:
        talk.config(endpoint={"longest_s": 1.5})
        talk.audio(babble(8, seed=4))
        talk.say(type="close")
        events = talk.rest()
    assert rising([event["seq"] for event in events])
    segments = [event["segment"] for event in events if event["type"] in ("partial", "final")]
    assert segments == sorted(segments)
    assert len(set(segments)) > 2
    for segment in set(segments):
        own = [event for event in events if event.get("segment") == segment and event["type"] in ("partial", "final")]
        assert [event["type"] for event in own] == ["partial"] * (len(own) - 1) + ["final"]
        stable = [event["stable"] for event in own[:-1]]
        assert all(b.startswith(a) for a, b in zip(stable, [*stable[1:], own[-1]["text"]], strict=True))
        words = own[-1]["words"]
        assert " ".join(word["word"] for word in words) == own[-1]["text"]
        times = [time for word in words for time in (word["start_s"], word["end_s"])]
        assert times == sorted(times)
    assert events[-1]["type"] == "done"


@pytest.mark.parametrize(("encoding", "rate"), [("f32le", 44_100), ("mulaw", 8000), ("alaw", 8000), ("s16le", 48_000)])
def test_encodings_and_rates(running: Running, encoding: str, rate: int) -> None:
    wave = babble(3, rate=rate, seed=5)
    data = {
        "f32le": wave.astype("<f4").tobytes(),
        "s16le": pcm(wave),
        "mulaw": np.random.default_rng(0).integers(0, 256, len(wave), np.uint8).tobytes(),
        "alaw": np.random.default_rng(0).integers(0, 256, len(wave), np.uint8).tobytes(),
    }[encoding]
    with Talk(running.url) as talk:
        talk.config(encoding=encoding, rate=rate)
        for start in range(0, len(data), 8000):
            talk.socket.send(data[start : start + 8000])
        talk.say(type="close")
        done = talk.rest()[-1]
    assert done["type"] == "done"
    assert done["seconds"] == pytest.approx(3, abs=0.01)


def test_ogg_opus(running: Running) -> None:
    pytest.importorskip("av")
    buffer, wave = io.BytesIO(), babble(3, 48_000, seed=5)
    soundfile.write(buffer, wave, 48_000, format="OGG", subtype="OPUS")
    data = buffer.getvalue()
    with Talk(running.url) as talk:
        assert talk.config(encoding="opus")["rate"] == 48_000
        for start in range(0, len(data), 1000):
            talk.socket.send(data[start : start + 1000])
        talk.say(type="close")
        events = talk.rest()
    assert events[-1]["seconds"] == pytest.approx(3, abs=0.1)
    assert texts(events)


def test_audio_before_any_config_is_16_khz_s16le(running: Running) -> None:
    wave = babble(2, seed=6)
    with Talk(running.url) as talk:
        talk.audio(wave)
        talk.say(type="close")
        events = talk.rest()
    assert events[0]["type"] == "ready"
    assert events[-1]["seconds"] == 2.0


def test_nothing_at_all_is_done_at_once(running: Running) -> None:
    with Talk(running.url) as talk:
        talk.say(type="close")
        events = talk.rest()
    assert [event["type"] for event in events] == ["ready", "done"]


def test_finalize_latency_and_hotwords_on_the_way(running: Running) -> None:
    wave = babble(6, seed=7)
    with Talk(running.url) as talk:
        talk.config(latency_ms=80)
        talk.audio(wave[:48_000])
        talk.say(type="set_latency", latency_ms=0)
        talk.say(type="hotwords", phrases=["abc"], weight=1.0)
        talk.say(type="hotwords", phrases=["xyz"])
        talk.say(type="hotwords", phrases=None)
        talk.say(type="finalize")
        talk.say(type="keepalive")
        talk.audio(wave[48_000:])
        talk.say(type="close")
        events = talk.rest()
    refused = [event for event in events if event["type"] == "error"]
    assert len(refused) == 1
    assert refused[0]["code"] == "refused"
    assert not refused[0]["fatal"]
    assert texts(events) == [running.text(heard(wave[:48_000]), 80), running.text(heard(wave[48_000:]), 0)]


@pytest.mark.parametrize(
    ("message", "code", "word"),
    [
        ("{", 1007, "bad_message"),
        ("[]", 1008, "bad_message"),
        ('{"type": "dance"}', 1008, "bad_message"),
        ('{"type": "config", "rate": "high"}', 1008, "bad_message"),
        ('{"type": "config", "rate": 0}', 1008, "bad_message"),
        ('{"type": "config", "encoding": "mp3"}', 1007, "bad_input"),
        ('{"type": "config", "channels": 99}', 1007, "bad_input"),
        ('{"type": "config", "latency_ms": -1}', 1008, "bad_message"),
        ('{"type": "config", "hotwords": ["xyz"]}', 1007, "bad_input"),
        ('{"type": "config", "endpoint": {"trailing_s": -1}}', 1007, "bad_input"),
        ('{"type": "config", "colour": "red"}', 1008, "bad_message"),
        ('{"type": "config", "resume": "nonsense"}', 1008, "unknown_session"),
        (b"odd", 1007, "bad_input"),
        ('{"type": "set_latency"}', 1008, "bad_message"),
        ("x" * 2000, 1007, "bad_message"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(running: Running, message: str | bytes, code: int, word: str) -> None:
    with Talk(running.url) as talk:
        talk.socket.send(message)
        events = talk.rest()
    assert events[-1]["type"] == "error"
    assert events[-1]["code"] == word
    assert events[-1]["fatal"]
    assert 10 < len(events[-1]["message"]) < 400
    assert "\n" not in events[-1]["message"]
    assert talk.closed[0] == code
    assert running.empty()


@pytest.mark.parametrize("bad", [np.float32("nan"), np.float32("inf"), np.float32(1e30)])
def test_samples_that_are_none_are_refused(running: Running, bad: np.float32) -> None:
    with Talk(running.url) as talk:
        talk.config(encoding="f32le")
        talk.socket.send(np.array([0.0, bad], "<f4").tobytes())
        events = talk.rest()
    assert events[-1]["code"] == "bad_input"
    assert talk.closed[0] == 1007


def test_a_message_that_is_too_long_is_refused(running: Running) -> None:
    with Talk(running.url) as talk:
        talk.config()
        talk.socket.send(b"\0" * 262_145)
        with pytest.raises(ConnectionClosed):
            talk.take()
    assert talk.closed[0] == 1009
    with Talk(running.url) as talk:
        talk.config()
        talk.socket.send(b"\0" * 262_144)
        talk.say(type="close")
        assert talk.rest()[-1]["type"] == "done"
    assert running.empty()


def test_a_second_config_is_refused(running: Running) -> None:
    with Talk(running.url) as talk:
        talk.config()
        talk.say(type="config")
        assert talk.rest()[-1]["code"] == "bad_message"


def test_health_readiness_and_metrics(running: Running) -> None:
    assert httpx.get(f"{running.http}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{running.http}/ready")
    assert ready.status_code == 200
    assert ready.json() | {"server": ""} == {"ready": True, "server": "", "streams": 0, "limit": 16}
    before = {name: running.metric(f"speechkit_{name}") for name in ("audio_seconds_total", "streams_closed_total")}
    with Talk(running.url) as talk:
        assert eventually(lambda: running.metric("speechkit_streams") == 1)
        talk.whole(babble(3, seed=8))
    assert running.empty()
    assert running.metric("speechkit_audio_seconds_total") - before["audio_seconds_total"] == pytest.approx(3)
    assert running.metric("speechkit_streams_closed_total") - before["streams_closed_total"] == 1
    for name in ("step_seconds_count", "batch_size_count", "queueing_seconds_count", "word_latency_seconds_count"):
        assert running.metric(f"speechkit_{name}") > 0


def test_who_may_come(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    wave = babble(1)
    with serving(engine, tokens=("another-token-of-some-length", TOKEN)) as running:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            with pytest.raises(InvalidStatus) as refused:
                Talk(running.url, additional_headers=headers)
            assert refused.value.response.status_code == 401
            assert json.loads(refused.value.response.body or b"")["error"]["code"] == "unauthorized"
        with pytest.raises(InvalidStatus):  # addresses are kept by proxies and browsers
            Talk(f"{running.url}?token={TOKEN}")
        given: list[dict[str, Any]] = [
            {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}},
            {"subprotocols": ["bearer", TOKEN]},
        ]
        for options in given:
            with Talk(running.url, **options) as talk:
                assert talk.whole(wave)[-1]["type"] == "done"
        assert talk.socket.subprotocol == "bearer"
        assert httpx.get(f"{running.http}/metrics").status_code == 401
        assert httpx.get(f"{running.http}/health").status_code == 200
    assert TOKEN not in caplog.text
    assert "wrong" not in caplog.text
