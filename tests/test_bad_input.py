"""Whatever a user gives: one clear sentence, or it just works."""

import contextlib
import io
import json
import pickle
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechkit import audio, cli, hub
from speechkit.checkpoints import weights, writable
from speechkit.configuration import check, options
from speechkit.data.manifest import read_manifest
from speechkit.data.utterance import normalized
from speechkit.errors import InputError
from speechkit.text import CharTokenizer
from tests.asr.tiny import RATE, SYMBOLS, babble, configuration, recognizer, release
from tests.memory import peak_mb

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("models") / "release", ((13, 12), (12, 0)))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], model: Path) -> Run:
    """`speechkit transcribe` with these words: exit code, output, errors."""

    def started(*arguments: object, model: Path = model) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["transcribe", "--model", str(model), "--decoder", "ctc", *map(str, arguments)])
        code = ended.value.code
        return code if isinstance(code, int) else 0, *capsys.readouterr()

    return started


def one_sentence(result: tuple[int, str, str]) -> str:
    """The sentence with which a command refused."""
    assert result[0] == 2
    found = re.fullmatch(r"error: ([^\n]+)\n", result[2])
    assert found, result[2]
    assert "Traceback" not in result[2]
    return found[1]


# Recordings


def damaged() -> Iterator[tuple[str, bytes | None, str]]:
    """Name, content (None: no such file) and what is said."""

    def encoded(wave: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, wave, RATE, format=kind, subtype=subtype)
        return file.getvalue()

    wave = babble(1)
    yield "missing.wav", None, "There is no file"
    yield "empty.wav", b"", "is empty"
    yield "zero.wav", encoded(wave[:0]), "holds no samples"
    yield "cut.wav", encoded(wave)[:9000], "is truncated"
    yield "cut.flac", encoded(wave, "FLAC")[:9000], "is truncated"
    yield "letter.wav", b"Dear Sir or Madam, " * 99, "is not audio that can be read"
    wrong = (("nan.wav", np.nan, "NaN or Inf"), ("inf.wav", -np.inf, "NaN or Inf"), ("huge.wav", -1e30, "full scale"))
    for name, value, sentence in wrong:
        spoiled = wave.copy()
        spoiled[9000] = value
        yield name, encoded(spoiled, subtype="FLOAT"), sentence


@pytest.mark.parametrize("case", list(damaged()), ids=lambda case: case[0])
@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=["whole", "stream"])
def test_a_recording_that_cannot_be_used_is_named(
    run: Run, tmp_path: Path, case: tuple[str, bytes | None, str], mode: list[str]
) -> None:
    name, content, sentence = case
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = one_sentence(run(tmp_path / name, *mode))
    assert sentence in said
    assert name in said


@pytest.mark.parametrize("kind", ["text", "json", "srt"])
@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=["whole", "stream"])
def test_of_a_recording_that_breaks_off_the_good_part_is_transcribed(
    run: Run, tmp_path: Path, kind: str, mode: list[str]
) -> None:
    path = tmp_path / "cut.wav"
    audio.write(path, babble(4))
    path.write_bytes(path.read_bytes()[: 44 + 2 * 3 * RATE])
    audio.write(tmp_path / "good.wav", babble(4)[: 3 * RATE])
    code, said, error = run(path, "--format", kind, *mode)
    assert code == 2
    assert "cut.wav is truncated" in error
    assert said.replace("cut.wav", "good.wav") == run(tmp_path / "good.wav", "--format", kind, *mode)[1]


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (192_000, 1), (16_000, 8)])
@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=["whole", "stream"])
def test_any_rate_and_number_of_channels_works(
    run: Run, tmp_path: Path, rate: int, channels: int, mode: list[str]
) -> None:
    wave = np.repeat(babble(2, rate)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "a.wav", wave, rate)
    code, out, error = run(tmp_path / "a.wav", *mode)
    assert (code, error) == (0, "")
    assert len(out) > 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n\n"), ("json", '"text": "", "confidence": 0.0}\n')],
)
@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=["whole", "stream"])
def test_silence_is_an_empty_text(run: Run, tmp_path: Path, kind: str, expected: str, mode: list[str]) -> None:
    audio.write(tmp_path / "silence.wav", np.zeros(2 * RATE))
    config = configuration()
    quiet = recognizer(config)
    assert quiet.ctc is not None
    quiet.ctc.out.bias.data[-1] += 1e3  # hears nothing in anything
    folder = hub.save(tmp_path / "quiet", config, quiet, CharTokenizer(SYMBOLS), "")
    code, out, error = run(tmp_path / "silence.wav", "--format", kind, *mode, model=folder)
    assert (code, error) == (0, "")
    assert out.endswith(expected)
    assert run(tmp_path / "silence.wav", *mode)[0] == 0  # a model that hears voices there does not fall over


def test_the_packaged_model_hears_nothing_in_silence(run: Run, tmp_path: Path) -> None:
    audio.write(tmp_path / "silence.wav", np.zeros(3 * RATE))
    for mode in ([], ["--stream"]):
        assert run(tmp_path / "silence.wav", *mode, model=hub.DEFAULT) == (0, "\n", "")


@pytest.mark.parametrize("mode", [[], ["--stream"]], ids=["whole", "stream"])
def test_memory_does_not_grow_with_the_length(run: Run, tmp_path: Path, mode: list[str]) -> None:
    """11 minutes are 42 MB of samples alone; three hours are no different."""
    peaks = []
    for minutes in (1, 12):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(np.zeros(60 * RATE, np.float32))
        peak_mb(reset=True)
        assert run(path, *mode, "--latency-ms", "960")[0] == 0
        peaks.append(peak_mb())
    assert peaks[1] - peaks[0] < 20


# Corpora


def test_a_manifest_names_what_is_wrong_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio.write(tmp_path / "a.wav", babble(0.5))
    records = [{"path": "a.wav", "text": f"word {letter}", "id": letter} for letter in "abcdefgh"]
    records += [{"path": "gone.wav", "text": "missing"}, {"path": "a.wav", "text": " ... ", "id": "blank"}]
    records += [{"path": "a.wav", "text": "naïve Москва", "id": "moscow"}]
    records += [{"path": "a.wav", "text": "naïve 東京", "id": "tokyo"}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    usable = normalized(read_manifest(tmp_path / "m.jsonl")).within(0.01, "m.jsonl")
    assert [utterance.id for utterance in usable] == [*"abcdefgh", "tokyo"]
    assert usable[-1].text == "naive 東京"
    assert "There is no file" in caplog.text
    assert "gone.wav" in caplog.text
    assert "the text of blank is empty" in caplog.text
    assert "the text of moscow has unknown characters: М а в к о с" in caplog.text
    with pytest.raises(InputError, match=r"no piece for 'x' \(U\+0078\) in the text 'bad x'"):
        CharTokenizer(SYMBOLS).encode("bad x")


def test_a_manifest_of_missing_files_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"path": f"{i}.wav", "text": "a"}) for i in range(9)))
    with pytest.raises(InputError, match=r"9 of 9 utterances of .* cannot be used, .* the first: There is no file"):
        read_manifest(tmp_path / "m.jsonl")


# Recipes and options


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipe=librispeech_conformr"], r"no recipe 'librispeech_conformr' \(did you mean librispeech_conformer"),
        (["recipe=zzz"], "there is no recipe 'zzz'; there are: .*librispeech_conformer"),
        (["recipe=librispeech_conformer", "trainer.max_step=9"], r"no option 'trainer.max_step' \(did .*max_steps"),
        (["recipe=librispeech_conformer", "model=streaming_conformr"], "did you mean streaming_conformer"),
    ],
)  # fmt: skip
def test_a_near_miss_is_shown(words: list[str], sentence: str) -> None:
    assert "librispeech_conformer" in options("recipe")
    with pytest.raises(InputError, match=sentence) as error:
        check("train", words)
    assert "\n" not in str(error.value)


def test_the_command_refuses_it_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "recipe=librispeech_conformr"])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: [^\n]*did you mean librispeech_conformer[^\n]*\n", capsys.readouterr().err)


# Models and checkpoints


def altered(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


def test_a_truncated_model_is_refused(run: Run, tmp_path: Path) -> None:
    folder = altered(release(tmp_path / "r"), "model.safetensors", lambda data: data[:-100])
    said = one_sentence(run("a.wav", model=folder))
    assert "model.safetensors is no complete safetensors file" in said


def test_weights_of_another_model_are_refused(run: Run, tmp_path: Path) -> None:
    one, other = release(tmp_path / "r"), release(tmp_path / "o", layers=1)
    (one / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    said = one_sentence(run("a.wav", model=one))
    assert "not of the model that its configuration describes: they lack encoder.layers.1" in said


class Explosive:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "truncated", "text", "missing"])
def test_a_checkpoint_that_cannot_be_trusted_is_refused(run: Run, tmp_path: Path, kind: str) -> None:
    path, marker = tmp_path / "last.ckpt", tmp_path / "marker"
    if kind == "torch":  # a zip archive, as torch writes it
        torch.save({"state_dict": {"w": Explosive(marker)}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Explosive(marker)}, protocol=2))
    elif kind == "truncated":
        torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("not a checkpoint")
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint that can be read") as error:
        weights(path)
    assert "\n" not in str(error.value)
    assert "last.ckpt" in one_sentence(run("a.wav", model=path))
    assert not marker.exists()


def test_a_configuration_with_code_is_refused(run: Run, tmp_path: Path) -> None:
    folder = release(tmp_path / "r")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["ctc"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'marker'}"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "may only build classes of speechkit's models" in one_sentence(run("a.wav", model=folder))
    assert not (tmp_path / "marker").exists()


# Places to write to


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A path that nobody can write to, not even root: it lies below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def test_an_output_folder_that_cannot_be_written_is_named(run: Run, tmp_path: Path, no_folder: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(0.5))
    said = one_sentence(run(tmp_path / "a.wav", "--output", no_folder))
    assert f"the output folder {no_folder} cannot be written" in said
    with pytest.raises(InputError, match=r"cannot write to the output folder .*file/out"):
        writable(no_folder)


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """A disk on which no file grows over so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_former_model(tmp_path: Path) -> None:
    config = configuration()
    folder = release(tmp_path / "release")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with room_for(4096), pytest.raises(InputError, match="release cannot be written"):
        hub.save(folder, config, recognizer(config, seed=1), CharTokenizer(SYMBOLS), "new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
    hub.load(folder)


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    """As Lightning's trainer writes them, over the one before."""
    from lightning.fabric.plugins import TorchCheckpointIO

    path, writer = tmp_path / "last.ckpt", TorchCheckpointIO()
    writer.save_checkpoint({"state_dict": {"w": torch.ones(10_000)}}, path)
    with room_for(4096), pytest.raises(OSError, match="File too large"):
        writer.save_checkpoint({"state_dict": {"w": torch.zeros(10_000)}}, path)
    assert torch.equal(weights(path)["w"], torch.ones(10_000))


def test_a_full_disk_leaves_the_former_text(run: Run, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(2))
    assert run(tmp_path / "a.wav", "--output", tmp_path)[0] == 0
    before = (tmp_path / "a.txt").read_text()
    with room_for(4):
        result = run(tmp_path / "a.wav", "--output", tmp_path, "--latency-ms", "0")
    assert "a.txt" in one_sentence(result)
    assert (tmp_path / "a.txt").read_text() == before
