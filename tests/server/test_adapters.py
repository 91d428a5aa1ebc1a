"""What the adapters of other protocols say, where no client of theirs comes from a registry: mimicked here."""

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from speechkit.streaming.engine import Engine
from tests.asr.tiny import babble
from tests.server.serving import Running, Talk, heard, make_engine, pcm, serving


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine) as found:
        yield found
        assert found.empty()


def ws(running: Running, path: str) -> str:
    return running.http.replace("http", "ws") + path


@pytest.mark.parametrize("path", ["/", "/sherpa"])
def test_sherpa_onnx(running: Running, path: str) -> None:
    """As its `online-websocket-client-decode-file.py`: f32le, `Done`, JSON until `Done!`."""
    wave = heard(babble(5, seed=11))
    with Talk(ws(running, path)) as talk:
        for piece in np.array_split(wave, 30):
            talk.socket.send(piece.astype("<f4").tobytes())
        talk.socket.send("Done")
        answers = []
        while (text := talk.socket.recv(20)) != "Done!":
            answers.append(json.loads(text))
    finals = [answer for answer in answers if answer["is_final"] and not answer["is_eof"]]
    assert len(finals) >= 1
    assert [answer["segment"] for answer in finals] == list(range(len(finals)))
    assert answers[-1]["is_eof"]
    assert answers[-1]["text"] == finals[-1]["text"]
    assert {"text", "segment", "start_time", "tokens", "timestamps", "words"} <= answers[0].keys()
    assert len(finals[0]["tokens"]) == len(finals[0]["timestamps"])


def test_sherpa_onnx_understands_no_other_text(running: Running) -> None:
    with Talk(ws(running, "/sherpa")) as talk:
        talk.socket.send("done?")
        assert talk.rest() == []
    assert talk.closed[0] == 1003


def test_vosk_answers_every_message_once(running: Running) -> None:
    with Talk(ws(running, "/vosk")) as talk:
        talk.say(config={"sample_rate": 8000, "words": True, "phrase_list": ["abc", "[unk]"]})
        wave = babble(6, rate=8000, seed=12)
        answers = []
        for piece in np.array_split(wave, 24):
            talk.socket.send(pcm(piece))
            answers.append(talk.take())
        talk.say(eof=1)
        last = talk.take()
        assert talk.rest() == []
    assert talk.closed[0] == 1000
    assert all(("partial" in answer) != ("text" in answer) for answer in answers)
    result = [word for answer in [*answers, last] for word in answer.get("result", [])]
    assert " ".join(word["word"] for word in result) == " ".join(
        answer["text"] for answer in [*answers, last] if answer.get("text")
    )
    assert {"conf", "start", "end", "word"} == result[0].keys()


def test_vosk_reset_ends_the_segment(running: Running) -> None:
    with Talk(ws(running, "/vosk")) as talk:
        talk.socket.send(pcm(babble(2, seed=13)))
        assert "partial" in talk.take()
        talk.say(reset=1)
        assert {"partial", "text"} & talk.take().keys()
        talk.say(eof=1)
        assert "text" in talk.take()


@pytest.mark.parametrize("message", ["{", "[1]", '{"what": 1}', '{"config": 1}', '{"config": {"sample_rate": "x"}}'])
def test_vosk_refuses_nonsense(running: Running, message: str) -> None:
    with Talk(ws(running, "/vosk")) as talk:
        talk.socket.send(message)
        assert "error" in talk.rest()[-1]
    assert talk.closed[0] in (1007, 1008)


@pytest.mark.parametrize(
    "query", ["encoding=mp3", "encoding=linear16", "encoding=linear16&sample_rate=x", "encoding=linear16&channels=99",
              "endpointing=soon&encoding=linear16&sample_rate=16000"]
)  # fmt: skip
def test_deepgram_options_that_cannot_be_had_are_refused_at_the_door(running: Running, query: str) -> None:
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus) as refused:
        Talk(ws(running, f"/v1/listen?{query}"))
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body or b"")["error"]["message"]


def test_deepgram_finalize_is_answered_though_nothing_was_said(running: Running) -> None:
    with Talk(
        ws(running, "/v1/listen?encoding=linear16&sample_rate=16000&vad_events=true&utterance_end_ms=1000")
    ) as talk:
        talk.say(type="KeepAlive")
        talk.say(type="Finalize")
        answer = talk.take()
        talk.audio(babble(3, seed=14))
        talk.say(type="CloseStream")
        events = talk.rest()
    assert answer["from_finalize"]
    assert answer["channel"]["alternatives"][0]["transcript"] == ""
    kinds = [event["type"] for event in events]
    assert kinds[0] == "SpeechStarted"
    assert kinds[-2:] == ["UtteranceEnd", "Metadata"]


def test_deepgram_takes_ogg_opus(running: Running) -> None:
    pytest.importorskip("av")
    buffer = io.BytesIO()
    soundfile.write(buffer, babble(2, 48_000, seed=5), 48_000, format="OGG", subtype="OPUS")
    data = buffer.getvalue()
    with Talk(ws(running, "/v1/listen?encoding=opus")) as talk:
        for start in range(0, len(data), 1000):
            talk.socket.send(data[start : start + 1000])
        talk.say(type="CloseStream")
        assert talk.rest()[-1]["duration"] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    "head", [b"\x00" * 44, b"RIFF\x00\x00\x00\x00WAVE" + b"\x01" * 66_000, b"OggS" + bytes(60), b"RIFX" * 20]
)
def test_deepgram_without_an_encoding_takes_wav_files_alone(running: Running, head: bytes) -> None:
    with Talk(ws(running, "/v1/listen")) as talk:
        for start in range(0, len(head), 10_000):
            talk.socket.send(head[start : start + 10_000])
        assert talk.rest() == []
    assert talk.closed[0] in (1007, 1008)


@pytest.mark.parametrize(
    "message",
    [
        "{", "[]", '{"type": "dance"}', '{"type": "session.update"}', '{"type": "input_audio_buffer.append"}',
        '{"type": "input_audio_buffer.append", "audio": "?"}', '{"type": "input_audio_buffer.clear"}',
        '{"type": "session.update", "session": {"type": "realtime"}}',
        '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/mp3"}}}}}',
        '{"type": "transcription_session.update", "session": {"input_audio_format": "mp3"}}',
    ],
)  # fmt: skip
def test_openai_answers_nonsense_and_goes_on(running: Running, message: str) -> None:
    with Talk(ws(running, "/v1/realtime?intent=transcription")) as talk:
        assert talk.take()["type"] == "session.created"
        talk.socket.send(message)
        error = talk.take()
        assert error["type"] == "error"
        assert error["error"]["message"]
        talk.say(type="transcription_session.update", session={"input_audio_format": "g711_ulaw"})
        assert talk.take()["type"] == "transcription_session.updated"
        talk.say(type="input_audio_buffer.commit", event_id="mine")
        assert talk.take()["type"] == "input_audio_buffer.committed"
        assert talk.take()["transcript"] == ""
