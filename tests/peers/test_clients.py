"""Clients that nobody here wrote, against our server: OpenAI's, Deepgram's and Vosk's own."""

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from speechkit.streaming.engine import Engine
from tests.asr.tiny import babble
from tests.server.serving import TOKEN, Running, heard, make_engine, pcm, serving


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, tokens=(TOKEN,)) as found:
        yield found
        assert found.empty()


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return heard(babble(5, seed=11))


@pytest.fixture(scope="module")
def file(wave: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "babble.flac"
    soundfile.write(path, wave, 16_000)
    return path


class TestOpenAI:
    """The package `openai`."""

    @pytest.fixture
    def client(self, running: Running) -> Any:
        openai = pytest.importorskip("openai")
        return openai.OpenAI(base_url=f"{running.http}/v1", api_key=TOKEN, max_retries=0)

    def test_models_are_listed(self, client: Any) -> None:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "speechkit"

    def test_a_wrong_key_is_refused(self, running: Running, file: Path) -> None:
        openai = pytest.importorskip("openai")
        client = openai.OpenAI(base_url=f"{running.http}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="bearer token"):
            client.audio.transcriptions.create(model="any", file=file)

    def test_a_file_is_transcribed_in_every_format(self, client: Any, running: Running, file: Path) -> None:
        def create(**options: Any) -> Any:
            return client.audio.transcriptions.create(model="any", file=file, **options)

        text = create().text
        assert len(text.split()) > 3
        assert create(response_format="text") == text + "\n"
        assert create(response_format="srt").startswith("1\n00:00:0")
        assert create(response_format="vtt").startswith("WEBVTT\n\n00:00:0")
        told = create(response_format="verbose_json", timestamp_granularities=["word", "segment"])
        assert told.text == text
        assert " ".join(word.word for word in told.words) == text
        assert " ".join(segment.text for segment in told.segments) == text
        assert 0 <= told.words[0].start < told.words[-1].end <= 5

    def test_a_file_is_transcribed_as_events(self, client: Any, file: Path) -> None:
        text = client.audio.transcriptions.create(model="any", file=file).text
        events = list(client.audio.transcriptions.create(model="any", file=file, stream=True))
        assert [event.type for event in events[-2:]] == ["transcript.text.delta", "transcript.text.done"]
        assert "".join(event.delta for event in events[:-1]) == text == events[-1].text
        assert len(events) > 3

    def test_what_is_no_audio_is_an_error_of_the_request(self, client: Any) -> None:
        openai = pytest.importorskip("openai")
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(model="any", file=("x.wav", io.BytesIO(b"not audio at all")))

    @pytest.mark.parametrize("detection", [None, {"type": "server_vad", "silence_duration_ms": 300}])
    def test_realtime_transcription(self, client: Any, wave: np.ndarray, running: Running, detection: Any) -> None:
        client.websocket_base_url = running.http.replace("http", "ws") + "/v1"
        high = soxr.resample(wave, 16_000, 24_000)
        done: list[str] = []
        with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            assert connection.recv().type == "session.created"
            given = {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": detection}
            connection.session.update(session={"type": "transcription", "audio": {"input": given}})
            updated = connection.recv()
            assert updated.type == "session.updated"
            assert updated.session.audio.input.format.rate == 24_000
            for piece in np.array_split(high, 20):
                connection.input_audio_buffer.append(audio=base64.b64encode(pcm(piece)).decode())
            connection.input_audio_buffer.commit()
            deltas: dict[str, str] = {}
            final = 0
            while final < 1:
                event = connection.recv()
                if event.type == "conversation.item.input_audio_transcription.delta":
                    deltas[event.item_id] = deltas.get(event.item_id, "") + event.delta
                if event.type == "conversation.item.input_audio_transcription.completed":
                    assert event.transcript == deltas.get(event.item_id, "")
                    done.append(event.transcript)
                    final += detection is None or len(" ".join(done)) >= 20
        assert len(" ".join(done).split()) > 2


class TestDeepgram:
    """The package `deepgram-sdk`."""

    @pytest.mark.parametrize("encoded", [True, False])
    def test_live_transcription(self, running: Running, wave: np.ndarray, encoded: bool) -> None:
        deepgram = pytest.importorskip("deepgram")
        environment = pytest.importorskip("deepgram.environment").DeepgramClientEnvironment
        address = running.http.replace("http", "ws")
        places = environment(base=running.http, production=address, agent=address, agent_rest=running.http)
        client = deepgram.DeepgramClient(api_key=TOKEN, environment=places)
        options = {"encoding": "linear16", "sample_rate": 16_000} if encoded else {}
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16_000, format="WAV", subtype="PCM_16")
        data = pcm(wave) if encoded else buffer.getvalue()
        with client.listen.v1.connect(model="nova-3", interim_results=True, endpointing=False, **options) as socket:

            def send() -> None:
                for start in range(0, len(data), 8001):  # samples are cut
                    socket.send_media(data[start : start + 8001])
                socket.send_finalize()
                socket.send_close_stream()

            thread = threading.Thread(target=send)
            thread.start()
            events = list(socket)
            thread.join()
        results = [event for event in events if event.type == "Results"]
        finals = [event for event in results if event.is_final]
        assert events[-1].type == "Metadata"
        assert events[-1].duration == pytest.approx(5)
        assert len(results) > len(finals)
        assert [event.from_finalize for event in finals] == [True]
        best = finals[0].channel.alternatives[0]
        assert best.transcript == running.text(wave)
        assert " ".join(word.word for word in best.words) == best.transcript

    def test_a_wrong_key_is_refused(self, running: Running) -> None:
        deepgram = pytest.importorskip("deepgram")
        environment = pytest.importorskip("deepgram.environment").DeepgramClientEnvironment
        address = running.http.replace("http", "ws")
        places = environment(base=running.http, production=address, agent=address, agent_rest=running.http)
        client = deepgram.DeepgramClient(api_key="wrong", environment=places)
        with pytest.raises(Exception, match="401"), client.listen.v1.connect(model="nova-3"):
            pass


class TestVosk:
    """The client in the package `vosk`, which talks to a Vosk server."""

    @pytest.mark.parametrize("path", ["", "/vosk"])
    def test_its_transcriber(self, engine: Engine, wave: np.ndarray, path: str) -> None:
        transcriber = pytest.importorskip("vosk.transcriber.transcriber").Transcriber
        with serving(engine) as running:
            client = transcriber.__new__(transcriber)  # its constructor loads a model
            client.args = SimpleNamespace(server=running.http.replace("http", "ws") + path)

            async def run() -> Any:
                stream = asyncio.StreamReader()
                stream.feed_data(pcm(wave))
                stream.feed_eof()
                return await client.recognize_stream_server(SimpleNamespace(stdout=stream))

            results, size = asyncio.run(run())
            assert size == 2 * len(wave)
            text = " ".join(result["text"] for result in results if result["text"])
            assert len(text.split()) > 3
            assert running.empty()
