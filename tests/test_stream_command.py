"""`speechkit stream` and the clients, against a server in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.cli import main
from speechkit.streaming.blocking_client import Client
from speechkit.streaming.client import ServerError
from speechkit.streaming.engine import Engine
from tests.asr.tiny import babble
from tests.server.serving import TOKEN, Running, heard, make_engine, serving


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
