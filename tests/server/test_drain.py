"""A server as people run it: how it ends, what it says of bad options, TLS."""

import functools
import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import which

import httpx
import pytest
from websockets.exceptions import InvalidHandshake, InvalidStatus

from speechkit import hub, serve
from speechkit.text import CharTokenizer
from tests.asr.tiny import SYMBOLS, babble, configuration, recognizer, release
from tests.paths import ROOT, hear_ctrl_c
from tests.server.serving import Talk, eventually, heard, make_engine, serving, texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("release") / "tiny")


@pytest.fixture
def log() -> Iterator[None]:
    """The log as it was, whatever Hydra does to it."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


def other(folder: Path, **front: int) -> Path:
    """A release with weights of its own."""
    config = configuration()
    config["model"]["front"].update(front)
    return hub.save(folder, config, recognizer(config, seed=5), CharTokenizer(SYMBOLS), "# Random")


@contextmanager
def process(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it prints."""
    command = [
        sys.executable,
        "-m",
        "speechkit.serve",
        f"model={model}",
        "port=0",
        "threads=1",
        "limits.streams=8",
        *options,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as running:
        try:
            assert running.stdout is not None
            found = re.search(r"streams at ws://(\S+)/v1/stream", running.stdout.readline())
            assert found
            yield running, found[1]
        finally:
            running.kill()


def heard_s(address: str) -> float:
    """Seconds of audio that a server has taken."""
    page = httpx.get(f"http://{address}/metrics").text
    return float(re.search(r"^speechkit_audio_seconds_total (\S+)", page, re.M)[1])  # type: ignore[index]


def refused_as_draining(address: str) -> bool:
    """Whether a new client is told that the server is about to stop."""
    try:
        Talk(f"ws://{address}/v1/stream")
    except InvalidStatus as error:
        return json.loads(error.response.body or b"")["error"]["code"] == "draining"
    except (OSError, InvalidHandshake):  # it has stopped
        return False
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_signal_ends_every_stream_with_its_results(model: Path, number: signal.Signals) -> None:
    """The figure asks for 5 s, which a busy machine may not give: here it is 15 s."""
    waves = [babble(4, seed=seed) for seed in range(4)]
    with process(model, "limits.drain_s=12", "limits.waiting_s=20") as (running, address), ExitStack() as stack:
        talks = [stack.enter_context(Talk(f"ws://{address}/v1/stream")) for _ in waves]
        stack.enter_context(Talk(f"ws://{address}/v1/stream"))  # one that has not said a word delays nothing
        for talk, wave in zip(talks, waves, strict=True):
            talk.config()
            talk.audio(wave, 64_000)
        assert eventually(lambda: heard_s(address) == 4 * 4)
        begin = time.perf_counter()
        running.send_signal(number)
        assert eventually(lambda: refused_as_draining(address), 2)
        events = [talk.rest() for talk in talks]
        told = time.perf_counter() - begin
        assert running.wait(15) == 0
        print(f"results after {told:.2f} s, gone after {time.perf_counter() - begin:.2f} s")
        assert [found[-1]["type"] for found in events] == ["done"] * 4
        transcriber = hub.load(model)
        assert [texts(found) for found in events] == [[str(transcriber.transcribe(heard(wave)).text)] for wave in waves]
        assert [talk.closed[0] for talk in talks] == [1001] * 4
        assert running.stderr is not None
        said = [json.loads(line)["event"] for line in running.stderr.read().splitlines()]
        assert said.count("stream_ended") == 4
        assert said[-1] == "stopped"
        assert not {"stream_failed", "connection_failed"} & set(said)


def test_a_second_signal_ends_a_server_that_drains() -> None:
    wave = babble(20)
    with serving(make_engine(), drain_s=60, waiting_s=60) as running, suppress(OSError), Talk(running.url) as talk:
        talk.config(partials=False)
        talk.audio(wave, 64_000)
        running.server.handle_exit(signal.SIGTERM, None)
        assert eventually(lambda: running.application.hall.draining)
        assert running.thread.is_alive()
        begin = time.perf_counter()
        running.server.handle_exit(signal.SIGTERM, None)
        running.thread.join(10)
        print(f"gone {time.perf_counter() - begin:.2f} s after the second signal")
        assert not running.thread.is_alive()
        assert time.perf_counter() - begin < 3


@pytest.mark.soak
def test_ctrl_c_drains_and_a_second_signal_ends_the_process(model: Path) -> None:
    """A minute of audio waits to be heard, for which nobody waits any more."""
    options = "limits.drain_s=60", "limits.waiting_s=120"
    with process(model, *options) as (running, address), suppress(OSError), Talk(f"ws://{address}/v1/stream") as talk:
        talk.config(partials=False)
        talk.audio(babble(60), 64_000)
        assert eventually(lambda: heard_s(address) == 60)
        running.send_signal(signal.SIGINT)
        assert eventually(lambda: refused_as_draining(address), 2)
        begin = time.perf_counter()
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        print(f"gone {time.perf_counter() - begin:.2f} s after the second signal")
        assert time.perf_counter() - begin < 6  # and not the 9 s that the minute takes


def test_the_second_model_of_the_command_hears_what_is_over(model: Path, tmp_path: Path) -> None:
    second, wave = other(tmp_path / "other"), babble(3, seed=3)
    with process(model, f"second_model={second}", "workers=1") as (_, address):
        with Talk(f"ws://{address}/v1/stream") as talk:
            assert texts(talk.whole(wave, second_pass=True)) == [hub.load(second).transcribe(heard(wave)).text]
        with Talk(f"ws://{address}/v1/stream") as talk:
            assert texts(talk.whole(wave)) == [hub.load(model).transcribe(heard(wave)).text]


def test_bad_options_are_refused_in_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: None
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "junk.pem").write_text("junk")
    (tmp_path / "short").write_text("secret\n")
    full = release(tmp_path / "full", ((-1, -1),), causal=False)
    slow = other(tmp_path / "slow", sample_rate=8000, n_fft=256)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        junk = tmp_path / "junk.pem"
        cases = {
            (f"model={tmp_path / 'nowhere'}",): "nowhere",
            (f"model={full}",): "serve one with a limited look-ahead, with this as its second_model if you like",
            (f"port={port}",): f"cannot listen at 127.0.0.1:{port}",
            ("port=123456",): "cannot listen at",
            (f"certificate={junk}", f"key={junk}"): "junk.pem cannot be used",
            (f"certificate={tmp_path / 'none'}", f"key={junk}"): "cannot be used",
            (f"certificate={junk}",): "TLS takes both",
            (f"tokens={tmp_path / 'empty'}",): "holds no token",
            (f"tokens={tmp_path / 'none'}",): "tokens cannot be read",
            (f"tokens={tmp_path / 'short'}",): "at least 16",
            ("workers=-1",): "workers must be",
            ("batch=0",): "max_batch must be",
            ("limits.streams=0",): "limits.streams must be over 0",
            ("limits.colour=red",): "colour",
            ("limits=null",): "limits are set one by one",
            ("log=loud",): "log must be one of",
            ("latency_ms=-1",): "look-ahead",
            (f"second_model={tmp_path / 'nobody'}",): "nobody",
            (f"second_model={slow}",): "the second model takes 8000 Hz, and the first 16000",
        }
        monkeypatch.setattr(serve, "set_up", lambda level: None)  # the log is pytest's
        monkeypatch.setattr(serve, "load", functools.cache(serve.load))
        for options, sentence in cases.items():
            words = list(options) if options[0].startswith("model=") else [f"model={model}", *options]
            monkeypatch.setattr("sys.argv", ["serve", "threads=1", *words])
            with pytest.raises(SystemExit) as refused:
                serve.main()
            said = capsys.readouterr()
            assert refused.value.code == 2, options
            assert sentence in said.err, options
            assert len(said.err.strip().splitlines()) == 1, said.err


@pytest.mark.skipif(which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_streams_over_tls_and_nothing_else_at_that_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(certificate),
         "-keyout", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    wave = babble(1, seed=4)
    with serving(make_engine(), certificate=str(certificate), key=str(key)) as running:
        known = ssl.create_default_context(cafile=certificate)
        url = f"wss://127.0.0.1:{running.port}/v1/stream"
        with Talk(url, ssl=known) as talk:
            assert texts(talk.whole(wave)) == [running.text(heard(wave))]
        assert httpx.get(f"https://127.0.0.1:{running.port}/health", verify=known).status_code == 200
        with pytest.raises(ssl.SSLError):  # nobody vouches for the certificate
            Talk(url)
        begin = time.perf_counter()
        with pytest.raises((InvalidHandshake, OSError, EOFError)):
            Talk(running.url)
        assert time.perf_counter() - begin < 5
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{running.http}/health")
        with Talk(url, ssl=known) as talk:
            assert talk.whole(wave)[-1]["type"] == "done"
        assert running.empty()
    assert [record for record in caplog.records if record.exc_info] == []
