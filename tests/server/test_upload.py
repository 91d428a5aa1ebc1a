"""Files over HTTP: whole, as events, too large, too long, broken, and what is no file."""

import asyncio
import io
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Final
from speechkit.streaming.server import upload
from speechkit.streaming.server.answers import answer
from speechkit.streaming.session import Session
from tests.asr.tiny import babble
from tests.server.serving import Running, eventually, heard, make_engine, serving

PATH = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, upload_s=600, upload_bytes=2_000_000, streams=4) as found:
        yield found
        assert found.empty()


def encoded(wave: np.ndarray, kind: str = "FLAC", rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind)
    return buffer.getvalue()


def post(running: Running, data: bytes, name: str = "a.flac", **form: str) -> httpx.Response:
    return httpx.post(running.http + PATH, files={"file": (name, data)}, data={"model": "m"} | form, timeout=60)


@pytest.mark.parametrize(("kind", "rate"), [("FLAC", 16_000), ("WAV", 44_100), ("OGG", 48_000), ("MP3", 22_050)])
def test_files_of_any_kind_and_rate(running: Running, kind: str, rate: int) -> None:
    found = post(running, encoded(babble(4, rate=rate, seed=2), kind, rate), "misnamed.bin")
    assert found.status_code == 200
    assert found.json()["text"]


def test_the_text_is_that_of_the_stream(running: Running, engine: Engine) -> None:
    wave = heard(babble(6, seed=3))
    session = Session(engine)
    session.push(wave)
    session.finish()
    engine.run([session])
    expected = " ".join(event.text for event in session.events() if isinstance(event, Final))
    assert post(running, encoded(wave)).json() == {"text": expected}


def test_nothing_is_lost_while_the_client_is_asked_whether_it_is_there(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last events come while an answer to that is awaited."""
    wave = encoded(babble(2, seed=4))
    expected = post(running, wave).json()
    asked = upload.Request.is_disconnected

    async def slowly(request: upload.Request) -> bool:
        await asyncio.sleep(0.2)
        return await asked(request)

    monkeypatch.setattr(upload.Request, "is_disconnected", slowly)
    assert post(running, wave).json() == expected != {"text": ""}


@pytest.mark.parametrize(
    ("shape", "body"), [("text", "\n"), ("vtt", "WEBVTT\n\n"), ("srt", ""), ("json", '{"text":""}')]
)
def test_where_nobody_speaks_there_is_no_text(shape: str, body: str) -> None:
    found = answer([], 1.0, shape, False)
    assert bytes(found.body).decode() == body


def test_a_verbose_answer_tells_of_the_whole_file(running: Running) -> None:
    wave = np.concatenate([heard(babble(4, seed=3)), np.zeros(3 * 16_000, np.float32)])
    found = post(running, encoded(wave), response_format="verbose_json").json()
    assert found["duration"] == 7.0
    assert found["segments"]
    for segment in found["segments"]:
        assert segment["text"]
        assert segment["avg_logprob"] < 0
        assert segment["compression_ratio"] > 0
    silent = post(running, encoded(np.zeros(16_000, np.float32)), response_format="verbose_json").json()
    assert silent["duration"] == 1.0
    assert (silent["text"] == "") == (silent["segments"] == [])


def test_a_form_that_drips_holds_no_place(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "LEAST_RATE", 10_000)
    with serving(engine, idle_s=0.4) as running, socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(
            b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        assert eventually(lambda: running.places == 1)
        begin = time.monotonic()
        with suppress(OSError):
            while running.places and time.monotonic() - begin < 10:
                client.sendall(b"x")
                time.sleep(0.05)
        assert b"408" in client.recv(100)
        assert running.places == 0


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"", "a.wav"), (b"no audio at all", "a.flac"), (b"RIFF\x10\0\0\0WAVE", "a.wav"), (b"fLaC" + bytes(50), "a.flac"),
     (b"OggS" + bytes(60), "a.ogg")],
)  # fmt: skip
def test_what_is_no_audio_is_refused_with_a_sentence(running: Running, data: bytes, name: str) -> None:
    found = post(running, data, name)
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["code"] == "bad_audio"
    assert 10 < len(error["message"]) < 300
    assert "/tmp" not in error["message"]


def test_a_file_that_is_cut_off_is_refused(running: Running) -> None:
    whole = encoded(babble(4, seed=5))
    found = post(running, whole[: len(whole) // 2])
    assert found.status_code == 400
    told = post(running, whole[: len(whole) // 2], stream="true")
    events = [json.loads(line[6:]) for line in told.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["type"] == "error"


def test_an_hour_of_silence_is_refused_by_its_header(running: Running) -> None:
    bomb = encoded(np.zeros(3600 * 16_000, np.int16))
    assert len(bomb) < 300_000
    post(running, encoded(babble(1)))  # all that is imported late is there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    found = post(running, bomb)
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "too_long"
    assert time.process_time() - begin < 0.5  # the table says 50 ms of an idle machine; decoding took ten times as long
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5 * 1024


def test_too_many_bytes_are_refused_whether_announced_or_not(running: Running) -> None:
    big = bytes(2_000_001)
    assert post(running, big).status_code == 413

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(100_000)
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(running.http + PATH, content=pieces(), headers=headers, timeout=60).status_code == 413


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "application/json"), (b"", "multipart/form-data"), (b"junk", "multipart/form-data; boundary=b"),
     (b"--b\r\nnonsense\r\n\r\n--b--", "multipart/form-data; boundary=b")],
)  # fmt: skip
def test_what_is_no_form_is_refused(running: Running, content: bytes, kind: str) -> None:
    found = httpx.post(running.http + PATH, content=content, headers={"content-type": kind})
    assert found.status_code == 400
    assert found.json()["error"]["message"]


def test_a_form_without_a_file_and_an_unknown_format_are_refused(running: Running) -> None:
    assert httpx.post(running.http + PATH, data={"file": "text"}, files={"x": b"1"}).status_code == 400
    found = post(running, encoded(babble(1)), response_format="xml")
    assert found.status_code == 400
    assert "json, text, srt, vtt, verbose_json" in found.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_place(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(encoded(babble(120, seed=6)))
    with pytest.raises(httpx.ReadTimeout), path.open("rb") as file:
        httpx.post(running.http + PATH, files={"file": file}, data={"model": "m"}, timeout=0.3)
    assert running.empty(10)


def test_a_full_server_refuses_files_too(engine: Engine) -> None:
    with serving(engine, streams=1) as running:
        running.application.hall.places += 1
        found = post(running, encoded(babble(1)))
        running.application.hall.places -= 1
        assert found.status_code == 503
        assert found.json()["error"]["code"] == "full"
        assert post(running, encoded(babble(1))).status_code == 200


def test_a_server_that_stops_gives_no_part_for_the_whole(engine: Engine) -> None:
    with serving(engine, drain_s=1) as running:
        data, answers = encoded(babble(300, seed=7)), []
        thread = threading.Thread(target=lambda: answers.append(post(running, data)))
        thread.start()
        assert eventually(lambda: running.metric("speechkit_audio_seconds_total") > 2)
        loop = running.server._loop
        assert loop is not None
        asyncio.run_coroutine_threadsafe(running.application.hall.drain(), loop).result(10)
        thread.join(10)
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "draining"
