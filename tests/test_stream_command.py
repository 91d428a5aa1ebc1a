"""`speechkit stream` and the clients, against a server in this process."""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkit.cli import main
from speechkit.errors import InputError
from speechkit.streaming.blocking_client import Client
from speechkit.streaming.client import KEPT_S, AsyncClient, ServerError
from speechkit.streaming.encoding import WIDTHS
from speechkit.streaming.engine import Engine
from tests.asr.tiny import babble
from tests.server.serving import NO_RULES, TOKEN, Running, eventually, heard, make_engine, pcm, serving


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, tokens=(TOKEN,)) as found:
        yield found
        assert found.empty()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "babble.flac"
    soundfile.write(path, heard(babble(3, seed=21)), 16_000)
    return path


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["stream", *map(str, words)])
    return int(ended.value.code or 0)


def test_a_recording_gives_what_transcribe_gives(
    running: Running, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHKIT_TOKEN", TOKEN)
    assert command(recording, "--url", running.url, "--speed", 0) == 0
    assert capsys.readouterr().out == running.text(heard(babble(3, seed=21))) + "\n"


def test_events_come_while_audio_is_sent_at_real_time(
    running: Running, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHKIT_TOKEN", TOKEN)
    assert command(recording, "--url", running.url, "--json", "--latency-ms", 0) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    partials = [event for event in events if event["type"] == "partial"]
    assert len(partials) > 5
    assert partials[0]["end_s"] < 1.5
    assert events[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "name audio files, or --mic"),
        (("missing.wav",), "There is no file"),
        (("{recording}", "--url", "ws://127.0.0.1:9/v1/stream"), "there is no server at"),
        (("{recording}", "--url", "nonsense"), "is no address of a server"),
        (("{recording}", "--url", "{url}"), "a bearer token is needed"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    running: Running, recording: Path, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(recording=recording, url=running.url) for word in words]
    assert command(*given) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1


def test_a_second_pass_that_cannot_be_had_is_said_in_a_sentence(
    running: Running, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHKIT_TOKEN", TOKEN)
    given = (recording, "--url", running.url, "--speed", 0, "--second-pass")
    assert command(*given) == 2
    assert capsys.readouterr().err.startswith(f"error: {running.url}: there is no second pass at 80 ms")
    assert command(*given, "--latency-ms", 0) == 0
    assert capsys.readouterr().out == running.text(heard(babble(3, seed=21)), 80) + "\n"


def test_a_program_without_an_event_loop(running: Running) -> None:
    wave, events = heard(babble(4, seed=22)), []
    options = {"endpoint": {"trailing_s": None, "silence_s": None}}
    with Client(running.url, token=TOKEN, options=options) as client:
        assert client.ready["rate"] == 16_000
        for piece in np.array_split(wave, 12):
            client.send(piece)
            events += client.events()
        client.set_latency(0)
        events += client.finish()
        with pytest.raises(ServerError, match="over"):
            client.send(wave)
    assert [event["text"] for event in events if event["type"] == "final"] == [running.text(wave)]
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))


def test_a_refusal_is_an_error_with_a_code(running: Running) -> None:
    with pytest.raises(ServerError) as refused, Client(running.url):
        pass
    assert refused.value.code == "unauthorized"
    with pytest.raises(ServerError) as refused, Client(running.url, token=TOKEN, options={"hotwords": ["xyz"]}):
        pass
    assert refused.value.code == "bad_input"


class FakeMicrophone:
    """sounddevice, with a recording for a microphone; Ctrl-C comes when all of it was heard."""

    PortAudioError = OSError

    def __init__(self, wave: np.ndarray) -> None:
        self.pieces = np.array_split(wave, 30)

    def query_devices(self, kind: str) -> dict[str, float]:
        assert kind == "input"
        return {"default_samplerate": 16_000.0}

    @contextmanager
    def RawInputStream(self, rate: int, size: int, **options: Any) -> Iterator[None]:  # noqa: N802
        def speak() -> None:
            for piece in self.pieces:
                options["callback"](pcm(piece))
            os.kill(os.getpid(), signal.SIGINT)

        threading.Timer(0.1, speak).start()
        yield


def test_ctrl_c_ends_the_microphone_with_its_last_words(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = babble(3, seed=21)
    monkeypatch.setenv("SPEECHKIT_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "sounddevice", FakeMicrophone(wave))
    assert command("--mic", "--no-segments", "--url", running.url) == 0
    assert capsys.readouterr().out == running.text(heard(wave)) + "\n"


def test_a_client_keeps_little_of_what_was_sent_though_nothing_is_said(running: Running) -> None:
    with Client(running.url, token=TOKEN, options={"endpoint": NO_RULES}) as client:
        for _ in range(20):
            client.send(np.zeros(16_000, np.float32))
        inner = client._client
        assert eventually(lambda: sum(len(item.payload) for item in inner._items) <= (KEPT_S + 1) * 32_000)
        assert client.finish()[-1]["type"] == "done"


@pytest.mark.parametrize(("encoding", "channels"), [("s16le", 5), ("s16le", 16), ("f32le", 7), ("mulaw", 3)])
def test_messages_hold_whole_samples_of_any_encoding(running: Running, encoding: str, channels: int) -> None:
    second = bytes(16_000 * WIDTHS[encoding] * channels)
    with Client(running.url, token=TOKEN, options={"encoding": encoding, "channels": channels}) as client:
        client.send_bytes(second)
        assert client.finish()[-1]["seconds"] == 1.0


def test_what_is_no_sound_is_not_sent(running: Running) -> None:
    with pytest.raises(InputError, match="no HTTP header"):
        Client(running.url, token="two\nlines")
    with Client(running.url, token=TOKEN) as client:
        for wrong, sentence in (
            (np.array([0.0, np.nan]), "NaN"), (np.zeros((3, 1600), np.float32), r"must be \(samples, 1\)"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=sentence):
                client.send(wrong)
        assert client.finish()[-1]["type"] == "done"


def test_a_client_that_is_not_connected_says_so(running: Running) -> None:
    client = AsyncClient(running.url)
    for call in (client.send(np.zeros(10, np.float32)), client.finish()):
        with pytest.raises(ValueError, match="`with` block"):
            asyncio.run(call)


def test_a_recording_that_breaks_off_is_said_at_once(
    running: Running, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHKIT_TOKEN", TOKEN)
    cut = recording.with_name("cut.flac")
    cut.write_bytes(recording.read_bytes()[:-2000])
    assert command(cut, "--url", running.url, "--speed", 0) == 2
    assert "cut.flac is truncated" in capsys.readouterr().err


def test_one_recording_that_is_missing_leaves_the_others(
    running: Running, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHKIT_TOKEN", TOKEN)
    assert command("missing.wav", recording, "--url", running.url, "--speed", 0) == 2
    told = capsys.readouterr()
    assert "There is no file missing.wav" in told.err
    assert told.out == f"{recording}: {running.text(heard(babble(3, seed=21)))}\n"
