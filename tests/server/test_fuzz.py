"""Seeded nonsense over every protocol: refused with a sentence or borne, and never more than that."""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest

from speechkit.asr.decoding.words import Word
from speechkit.errors import InputError
from speechkit.streaming.adapters.adapter import Adapter, Answer, Audio, Begin, Poll, RefusalError, Resume
from speechkit.streaming.adapters.deepgram import Deepgram
from speechkit.streaming.adapters.openai_realtime import OpenAIRealtime
from speechkit.streaming.adapters.own import Own
from speechkit.streaming.adapters.rooted import Rooted
from speechkit.streaming.adapters.sherpa import Sherpa
from speechkit.streaming.adapters.vosk import Vosk
from speechkit.streaming.command import obey
from speechkit.streaming.encoding import Decoder, Pcm
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial, Refused, SpeechEnd, SpeechStart
from speechkit.streaming.session import Session
from tests.asr.tiny import babble
from tests.server import raw
from tests.server.nonsense import DEEPGRAM, OPENAI, OWN, VOSK, broken_frame, message, ogg_page, query, wav_header
from tests.server.serving import Talk, heard, make_engine, serving, texts

VALID = {"own": OWN, "vosk": VOSK, "sherpa": VOSK, "root": VOSK, "deepgram": DEEPGRAM, "openai": OPENAI}
PATHS = {
    "own": "/v1/stream", "vosk": "/vosk", "sherpa": "/sherpa", "root": "/", "deepgram": "/v1/listen",
    "openai": "/v1/realtime",
}  # fmt: skip
WORD = Word("a", 0.1, 0.2, 0.9)
SAID: tuple[Event, ...] = (
    SpeechStart(0.1), Partial(0, "a", "", 0.1, 0.3, (WORD,)), Final(0, "a", (WORD,), 0.1, 0.2, "finalize"),
    SpeechEnd(0.2), Endpoint(0, "finalize", 0.3), Refused("no"), Endpoint(1, "finalize", 0.4), Done(0.5, 1),
)  # fmt: skip


class Told:
    """What adapters are told of a session."""

    id, latency_ms, latencies_ms, rate, received, model, resume_s = "id", 80.0, (80.0,), 16_000, 0, "tiny", 30.0
    server, second_pass = "name", False


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def makers(rng: np.random.Generator) -> dict[str, Callable[[], Adapter]]:
    return {
        "own": lambda: Own(30.0),
        "vosk": lambda: Vosk(16_000),
        "sherpa": lambda: Sherpa(16_000),
        "root": lambda: Rooted(16_000),
        "deepgram": lambda: Deepgram(query(rng), 30.0),
        "openai": lambda: OpenAIRealtime(30.0, "tiny"),
    }


def nonsense(rng: np.random.Generator, name: str) -> str | bytes:
    """A message for a protocol."""
    if name == "deepgram" and rng.random() < 0.2:
        return wav_header(rng)
    if name in ("deepgram", "own") and rng.random() < 0.1:
        return ogg_page(rng)
    return message(rng, VALID[name])


class Bare:
    """A connection and its session without the server between them."""

    def __init__(self, engine: Engine, adapter: Adapter) -> None:
        self.engine, self.adapter = engine, adapter
        self.decoder: Decoder = Pcm()
        self.session: Session | None = None
        self.act(adapter.begin())

    def act(self, actions: object) -> None:
        """Does what a message asks for, less the computing."""
        for action in actions:  # type: ignore[attr-defined]
            match action:
                case Begin(settings, decoder):
                    self.decoder = decoder
                    if settings.phrases or len(str(settings)) % 4 == 0:  # the model's part is not cheap
                        self.session = settings.begin(self.engine)
                    self.sent(self.adapter.opened(Told(), False))
                case Resume():
                    raise RefusalError(1008, "unknown_session", "there is none")
                case Answer(texts):
                    self.sent(texts)
                case Poll():
                    self.sent([self.adapter.polled()])
                case Audio(data):
                    self.decoder.push(data)
                case command:
                    if self.session is not None:
                        obey(self.session, command)

    def sent(self, said: object) -> None:
        """What is sent is JSON that can be written as UTF-8."""
        for text in said:  # type: ignore[attr-defined]
            text.encode()
            assert text == "Done!" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(("name", "count"), [(name, 10_000 if name == "own" else 2000) for name in VALID])
def test_an_adapter_refuses_nonsense_and_never_fails(engine: Engine, name: str, count: int) -> None:
    rng = np.random.default_rng(7)
    make = makers(rng)[name]
    refused = heard = 0
    codes = {1007}
    bare: Bare | None = None
    while heard < count:
        given: str | bytes = b""
        try:
            if bare is None:
                bare = Bare(engine, make())
            given = nonsense(rng, name)
            heard += 1
            bare.act(bare.adapter.hear(given))
            if rng.random() < 0.2:
                for number, event in enumerate(SAID):
                    bare.sent(bare.adapter.tell(number, event))
        except (RefusalError, InputError) as error:
            refused += 1
            heard += bare is None
            codes.add(error.close if isinstance(error, RefusalError) else 1007)
            if bare is not None and isinstance(error, RefusalError):
                bare.sent(bare.adapter.fail(error))
            bare = None
        except Exception as error:
            raise AssertionError(f"{name} fails at {given[:300]!r}") from error
        if rng.random() < 0.05:
            bare = None
    assert codes <= {1003, 1007, 1008}
    assert refused > count / 100 or name == "openai"  # which answers with errors, and goes on


@pytest.mark.parametrize(
    "told",
    [
        {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "\ud800"}}}}},
        {"type": "nothing", "event_id": "\udfff"},
        {"type": "\ud800"},
    ],
)
def test_half_a_character_is_said_back_as_it_came(told: dict[str, Any]) -> None:
    """JSON can escape what UTF-8 cannot hold."""
    adapter = OpenAIRealtime(30.0)
    answers = [action for action in adapter.hear(json.dumps(told)) if isinstance(action, Answer)]
    texts = [text for answer in answers for text in answer.texts]
    assert texts
    for text in texts:
        assert "\\ud" in text.encode("utf-8").decode()  # escaped, or it could not be sent


def quiet(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of failures: nothing should be."""
    bad = ("connection_failed", "stream_failed")
    return [
        f"{record.name} {record.getMessage()} {getattr(record, 'fields', '')} {record.exc_info}"
        for record in caplog.records
        if record.exc_info or record.levelno >= logging.ERROR or record.getMessage() in bad
    ]


def converse(port: int, path: str, said: bytes) -> bytes:
    """Says it all at once, and good-bye; returns what the server says until it closes."""
    client, status = raw.knock(port, path)
    with client:
        if status != 101:
            assert status == 400
            return b""
        with suppress(ConnectionError):  # the server had enough
            client.sendall(said + raw.frame(b"\x03\xe8", raw.CLOSE))
        return raw.rest(client)


@pytest.mark.parametrize(("name", "count"), [(name, 10_000 if name == "own" else 2000) for name in VALID])
def test_a_server_bears_nonsense_and_works_as_before(
    engine: Engine, caplog: pytest.LogCaptureFixture, name: str, count: int
) -> None:
    rng = np.random.default_rng(8)
    sent = 0
    with serving(engine, streams=500, resume_s=0.2, idle_s=1) as running:
        while sent < count:
            path = PATHS[name]
            if name == "deepgram" and rng.random() < 0.8:
                path += "?" + urlencode(query(rng), doseq=True)
            given = [raw.frame(nonsense(rng, name)) for _ in range(rng.integers(1, 24))]
            if rng.random() < 0.3:
                given.append(broken_frame(rng))
            sent += len(given)
            converse(running.port, path, b"".join(given))
        assert quiet(caplog) == []
        assert running.empty()
        assert httpx.get(f"{running.http}/health").json() == {"status": "ok"}
        wave = babble(1, seed=9)
        with Talk(running.url) as talk:
            assert texts(talk.whole(wave)) == [running.text(heard(wave))]
        assert running.empty()
