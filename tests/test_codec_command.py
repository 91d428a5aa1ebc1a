"""`speechkit codec`: what comes back, what it prints, and how it refuses."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from speechkit import audio, cli, hub, load
from speechkit.builder import build
from speechkit.codecs.codec import Codec
from speechkit.codecs.container import TokenHeader, TokenReader, TokenWriter
from speechkit.codecs.roundtrip import segments
from tests.asr.tiny import babble, release
from tests.paths import ROOT
from tests.test_bad_input import damaged

RATE, HOP = 24_000, 80


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


def saved(folder: Path, causal: bool = True, seed: int = 0, codebooks: int = 1) -> Path:
    """A release of a codec of 300 codes a second, or so many times as many, with random weights."""
    at = "speechkit.codecs."
    several = {"codebooks": codebooks} if codebooks > 1 else {}
    config: dict[str, Any] = {
        "api": at + "codec.Codec",
        "model": {
            "_target_": at + "wavtokenizer.WavTokenizer", "rate": RATE,
            "encoder": {
                "_target_": at + "seanet.SeanetEncoder", "dim": 8, "filters": 2, "strides": [8, 10], "causal": causal
            },
            "quantizer": {
                "_target_": at + f"quantizers.{'Residual' if several else 'Vector'}Quantizer", **several,
                "codebook": {"_target_": at + "codebook.Codebook", "size": 600, "dim": 8},
            },
            "decoder": {
                "_target_": at + "vocos.VocosDecoder", "in_dim": 8, "dim": 32, "inner": 48, "layers": 2,
                "hop": HOP, "n_fft": 4 * HOP, "groups": 8, "left": 10 if causal else None,
            },
        },
    }  # fmt: skip
    torch.manual_seed(seed)
    model = build(config["model"])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return hub.save(folder, config, model, None, "a card")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("causal", "whole", "other")):
        saved(folder / name, name != "whole", seed=i)
    saved(folder / "residual", codebooks=3)
    return folder


@pytest.fixture
def codec(capsys: pytest.CaptureFixture[str], models: Path) -> Run:
    """`speechkit codec` with these words, and the causal model unless another is named (None: none)."""

    def started(command: str, *arguments: object, model: str | None = "causal") -> Result:
        named = [] if model is None or command == "info" else ["--model", str(models / model)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["codec", command, *map(str, arguments), *named])
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return started


def one_sentence(result: Result) -> str:
    assert result.code == 2
    found = re.fullmatch(r"error: ([^\n]+)\n", result.err)
    assert found, result.err
    return found[1]


def tokens(path: Path) -> tuple[TokenReader, np.ndarray]:
    with path.open("rb") as file:
        reader = TokenReader(file, path.name)
        return reader, np.concatenate(list(reader.blocks()))[:, 0]


# What comes back


@pytest.mark.parametrize("model", ["causal", "whole"])
def test_the_commands_give_what_the_codec_gives(codec: Run, models: Path, tmp_path: Path, model: str) -> None:
    wave = babble(1.3, RATE)[:-17]
    audio.write(tmp_path / "a.wav", wave, RATE)
    assert codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", model=model) == (0, "", "")
    reader, codes = tokens(tmp_path / "a.skc")
    api: Codec = load(models / model)
    expected = api.encode(torch.from_numpy(audio.read(tmp_path / "a.wav", RATE)))
    assert codes.tolist() == expected.values[0].tolist()
    assert (reader.samples, reader.header.model) == (len(wave), model)
    assert codec("decode", tmp_path / "a.skc", "-o", tmp_path / "b.wav", model=model) == (0, "", "")
    back = audio.read(tmp_path / "b.wav", RATE)
    assert soundfile.info(tmp_path / "b.wav").subtype == "PCM_16"
    assert len(back) == len(wave)
    np.testing.assert_allclose(back, api.decode(expected)[0].clamp(-1, 1), atol=4e-5)


@pytest.mark.parametrize("codebooks", [None, 1, 2, 3])
def test_some_of_the_codebooks_are_enough(codec: Run, models: Path, tmp_path: Path, codebooks: int | None) -> None:
    audio.write(tmp_path / "a.wav", babble(1, RATE), RATE)
    some = [] if codebooks is None else ["--codebooks", codebooks]
    assert codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", *some, model="residual") == (0, "", "")
    assert codec("decode", tmp_path / "a.skc", "-o", tmp_path / "b.wav", model="residual") == (0, "", "")
    api: Codec = load(models / "residual")
    expected = api.encode(torch.from_numpy(audio.read(tmp_path / "a.wav", RATE)), codebooks=codebooks)
    np.testing.assert_allclose(audio.read(tmp_path / "b.wav", RATE), api.decode(expected)[0].clamp(-1, 1), atol=4e-5)
    assert json.loads(codec("info", tmp_path / "a.skc", "--json").out)["codebooks"] == [600] * (codebooks or 3)
    found = json.loads(codec("roundtrip", tmp_path / "a.wav", "--json", *some, model="residual").out)
    assert found["bits_per_second"] == 3000 * (codebooks or 3)


def test_more_codebooks_than_there_are_cannot_be_had(codec: Run, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(1, RATE), RATE)
    for model, said in (("residual", "has 3 codebooks, not 4"), ("causal", "has 1 codebook, not 4")):
        result = codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", "--codebooks", 4, model=model)
        assert said in one_sentence(result)
    assert not (tmp_path / "a.skc").exists()


def test_info_says_what_a_file_holds(codec: Run, models: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(2, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    found = json.loads(codec("info", tmp_path / "a.skc", "--json").out)
    weights = found.pop("hash")
    size = (tmp_path / "a.skc").stat().st_size
    assert re.fullmatch("[0-9a-f]{32}", weights)
    assert found == {
        "file": str(tmp_path / "a.skc"), "version": 1, "model": "causal", "rate_hz": RATE, "hop": HOP,
        "codebooks": [600], "codes": 600, "samples": 2 * RATE, "seconds": 2.0, "bytes": size, "bits_per_code": 10,
        "bits_per_second": 3000.0, "bits_per_second_of_the_file": size * 4.0,
    }  # fmt: skip
    assert size < 600 * 10 / 8 + 110
    table = codec("info", tmp_path / "a.skc").out
    assert re.search(r"^model +causal$", table, re.M)
    assert re.search(r"^codes +600$", table, re.M)


def test_info_says_how_long_streams_of_a_codec_wait(
    codec: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, beside what a file holds, and of the one that comes along."""
    alone = {"rate_hz": RATE, "hop": HOP, "codebooks": [600], "bits_per_second": 3000.0}
    stream = "a stream, 8 codes a call"
    about = {
        "causal": {"decoding": stream, "encoding_latency_ms": 26.7, "decoding_latency_ms": 30.0},
        "whole": {"decoding": "windows of 900 codes", "encoding_latency_ms": 39.0, "decoding_latency_ms": 3000.0},
    }
    for name, waits in about.items():
        found = json.loads(codec("info", "--model", models / name, "--json").out)
        assert re.fullmatch("[0-9a-f]{32}", found.pop("hash"))
        assert found == {"model": name, **alone, "encoding": stream, **waits}
    audio.write(tmp_path / "a.wav", babble(1, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    table = codec("info", tmp_path / "a.skc", "--model", models / "causal").out
    assert re.search(r"^codes +300$", table, re.M)
    assert re.search(r"^decoding latency ms +30.0$", table, re.M)
    said = one_sentence(codec("info", tmp_path / "a.skc", "--model", models / "other"))
    assert "holds tokens of the codec causal" in said
    monkeypatch.setattr(hub, "CODEC", models / "causal")
    assert json.loads(codec("info", "--json").out)["model"] == "causal"


def test_roundtrip_prints_how_long_streams_wait(codec: Run, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(1, RATE), RATE)
    said = {
        "causal": "encoding 26.7 ms (a stream, 8 codes a call), decoding 30.0 ms (a stream, 8 codes a call).",
        "whole": "encoding 39.0 ms (a stream, 8 codes a call), decoding 3000.0 ms (windows of 900 codes).",
    }
    for model, waits in said.items():
        assert waits in " ".join(codec("roundtrip", tmp_path / "a.wav", model=model).out.split())
    found = json.loads(codec("roundtrip", tmp_path / "a.wav", "--json", model="whole").out)
    assert (found["encoding_latency_ms"], found["decoding_latency_ms"]) == (39.0, 3000.0)


def test_roundtrip_prints_figures_of_each_and_of_all(codec: Run, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(2, RATE), RATE)
    audio.write(tmp_path / "b.flac", babble(1, 16_000))
    result = codec("roundtrip", tmp_path, "--json")
    found = json.loads(result.out)
    one, other = found["files"]
    assert (result.code, result.err) == (0, "")
    assert [Path(row["file"]).name for row in (one, other)] == ["a.wav", "b.flac"]
    assert (one["seconds"], one["bits_per_second"], found["bits_per_second"]) == (2.0, 3000.0, 3000.0)
    assert all(
        row[f"{part}_{clock}"] > 0 for row in (one, other) for part in ("encode", "decode") for clock in ("cpu",)
    )
    assert found["total"]["seconds"] == 3.0
    assert found["total"]["mel_distance"] == pytest.approx((2 * one["mel_distance"] + other["mel_distance"]) / 3)
    assert np.isfinite(one["si_sdr_db"])
    table = codec("roundtrip", tmp_path / "a.wav")
    assert table.code == 0
    assert {"SI-SDR", "STOI", "PESQ", "total"} <= set(table.out.split())
    assert "\N{HORIZONTAL ELLIPSIS}" not in table.out, "a number was cut"


def test_segments_pair_what_belongs_together() -> None:
    """What is decoded comes later than what is heard, and ends with a whole hop."""
    heard: list[torch.Tensor] = []

    def decoded() -> Iterator[torch.Tensor]:
        for start in range(0, 150_000, 1000):
            heard.append(torch.arange(start, start + 1000.0))
            if start >= 3000:
                yield heard[-1] - 3000
        yield torch.arange(147_000.0, 150_080.0)

    pairs = list(segments(decoded(), heard, 2000))
    assert [len(ours) for ours, _ in pairs] == [60_000, 60_000, 30_000]
    assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)


# Recordings of all kinds


@pytest.mark.parametrize(
    ("rate", "channels", "gain", "samples"),
    [(8000, 1, 1, 4001), (44_100, 2, 1, 20_000), (RATE, 1, 100, 9000), (RATE, 1, 0, 9000), (RATE, 1, 1, 1)],
    ids=["8 kHz", "stereo", "clipped", "silence", "one sample"],
)
def test_any_recording_works_and_keeps_its_length(
    codec: Run, tmp_path: Path, rate: int, channels: int, gain: float, samples: int
) -> None:
    wave = np.clip(gain * babble(1, rate)[:samples], -1, 1)
    if channels == 2:
        wave = np.stack([wave, wave], axis=1)
    soundfile.write(tmp_path / "a.wav", wave, rate)
    assert codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc") == (0, "", "")
    assert codec("decode", tmp_path / "a.skc", "-o", tmp_path / "b.wav") == (0, "", "")
    assert audio.info(tmp_path / "b.wav").frames == len(audio.read(tmp_path / "a.wav", RATE))
    result = codec("roundtrip", tmp_path / "a.wav", "--json")
    assert (result.code, result.err) == (0, "")
    if gain == 0:
        assert json.loads(result.out)["total"]["stoi"] is None


def test_a_pipe_gives_what_files_give(codec: Run, tmp_path: Path, models: Path) -> None:
    """And sounds before the input ends."""
    audio.write(tmp_path / "a.wav", babble(3, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    codec("decode", tmp_path / "a.skc", "-o", tmp_path / "a2.wav")
    command = [sys.executable, "-m", "speechkit", "codec"]
    end = ["-", "-o", "-", "--model", str(models / "causal")]
    pipe, data = subprocess.PIPE, (tmp_path / "a.wav").read_bytes()
    with (
        subprocess.Popen([*command, "encode", *end], cwd=ROOT, stdin=pipe, stdout=pipe) as encode,
        subprocess.Popen([*command, "decode", *end], cwd=ROOT, stdin=encode.stdout, stdout=pipe) as decode,
    ):
        assert encode.stdin
        assert encode.stdout
        assert decode.stdout
        encode.stdout.close()
        encode.stdin.write(data[: len(data) // 2])
        encode.stdin.flush()
        heard = decode.stdout.read(20_000)
        encode.stdin.write(data[len(data) // 2 :])
        encode.stdin.close()
        heard += decode.stdout.read()
    assert (encode.wait(), decode.wait(), len(heard)) == (0, 0, 44 + 2 * 3 * RATE)
    (tmp_path / "b.wav").write_bytes(heard)
    apart = np.abs(audio.read(tmp_path / "b.wav", RATE) - audio.read(tmp_path / "a2.wav", RATE))
    assert apart.max() <= 1 / 32768  # files are made in larger calls: some samples are rounded the other way


def test_several_recordings_get_a_file_each(codec: Run, tmp_path: Path) -> None:
    (tmp_path / "in" / "x").mkdir(parents=True)
    for name in ("one.wav", "x/two.v2.flac"):
        audio.write(tmp_path / "in" / name, babble(0.2, RATE), RATE)
    (tmp_path / "in" / "bad.wav").write_bytes(b"nothing")
    result = codec("encode", tmp_path / "in", "-o", tmp_path / "out")
    assert "bad.wav is not audio" in one_sentence(result)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["one.skc", "x/two.v2.skc"]
    assert codec("encode", tmp_path / "in" / "one.wav", "-o", tmp_path / "out" / "x").code == 0
    assert (tmp_path / "out" / "x" / "one.skc").read_bytes() == (tmp_path / "out" / "one.skc").read_bytes()


MEASURED = """
from speechkit import cli
from tests.memory import peak_mb
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code
print(peak_mb())
"""


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_memory_does_not_grow_with_the_length(models: Path, tmp_path: Path, command: str) -> None:
    """In processes of their own, for what tests before have left would blur it."""
    peaks = []
    for seconds in (20, 170):  # 150 s are 14 MB of samples alone
        path = tmp_path / f"{seconds}.flac"
        soundfile.write(path, np.zeros(seconds * RATE, np.float32), RATE)
        target = tmp_path / "a.skc"
        if command == "decode":
            path, target = tmp_path / f"{seconds}.skc", tmp_path / "a.wav"
            with path.open("wb") as file:
                writer = TokenWriter(file, TokenHeader.of(load(models / "whole"), "whole"))
                writer.write(np.random.default_rng(0).integers(600, size=(seconds * RATE // HOP, 1)))
                writer.end(seconds * RATE)
        model = models / ("causal" if command == "encode" else "whole")
        words = ["codec", command, path, "-o", target, "--model", model]
        called = [sys.executable, "-c", MEASURED, *map(str, words)]
        done = subprocess.run(called, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 8


# What is refused


@pytest.mark.parametrize("case", list(damaged()), ids=lambda case: case[0])
@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_a_recording_that_cannot_be_used_is_named(
    codec: Run, tmp_path: Path, case: tuple[str, bytes | None, str], command: str
) -> None:
    name, content, sentence = case
    if content is not None:
        (tmp_path / name).write_bytes(content)
    output = ["-o", tmp_path / "a.skc"] if command == "encode" else []
    result = codec(command, tmp_path / name, *output)
    said = one_sentence(result)
    assert sentence in said
    assert name in said
    assert result.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if content is None else [name])


def test_what_is_shorter_than_a_sample_is_said(codec: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1), 192_000)
    for command, output in (("encode", ["-o", tmp_path / "a.skc"]), ("roundtrip", [])):
        result = codec(command, tmp_path / "a.wav", *output)
        assert result.code == 0 or "shorter than one sample" in one_sentence(result)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["encode", "a.wav", "-o", "a.wav"], "--output must be a file that ends in .skc, or -, got a.wav"),
        (["encode", "a.wav", "a.wav", "-o", "a.skc"], "2 recordings need a file each: name a folder with --output"),
        (["encode", "a.wav", "b/a.wav", "-o", "out"], "would both be written to out/a.skc"),
        (["encode", "empty", "-o", "out"], "empty holds no audio files"),
        (["encode", "a.wav", "-o", "file/a.skc"], "Cannot write file/a.skc"),
        (["decode", "a.skc", "-o", "a.mp3"], "--output must be a file that ends in .wav, or -, got a.mp3"),
        (["decode", "none.skc", "-o", "b.wav"], "There is no file none.skc."),
        (["decode", "empty", "-o", "b.wav"], "Cannot read empty: Is a directory."),
        (["decode", "a.wav", "-o", "b.wav"], "a.wav is no token file (.skc)"),
        (["decode", "cut.skc", "-o", "b.wav"], "cut.skc is cut off or damaged: it ends after 0 codes"),
        (["decode", "flipped.skc", "-o", "b.wav"], "flipped.skc is damaged after 0 codes: the checksum does not fit"),
        (["info", "cut.skc"], "cut.skc is cut off or damaged"),
        (["info", "x" * 5000], "File name too long"),
        (["info", "a\0"], "embedded null byte"),
        (["roundtrip", "empty"], "empty holds no audio files"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    codec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("b", "empty"):
        Path(folder).mkdir()
    for name in ("a.wav", "b/a.wav"):
        audio.write(name, babble(0.5, RATE), RATE)
    Path("file").write_text("no folder")
    codec("encode", "a.wav", "-o", "a.skc")
    data = bytearray(Path("a.skc").read_bytes())
    Path("cut.skc").write_bytes(data[:-40])
    data[-40] ^= 4
    Path("flipped.skc").write_bytes(data)
    before = sorted(Path().rglob("*"))
    result = codec(*arguments)
    assert sentence in one_sentence(result)
    assert result.out == ""
    assert [path for path in sorted(Path().rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]


def test_without_a_model_it_is_the_one_that_comes_along(
    codec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio.write(tmp_path / "a.wav", babble(0.5, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    said = one_sentence(codec("decode", tmp_path / "a.skc", "-o", tmp_path / "b.wav", model=None))
    assert re.search(r"holds tokens of the codec causal \(\w{12}\), not of codec \(\w{12}\): name causal", said)
    assert codec("encode", tmp_path / "a.wav", "-o", tmp_path / "b.skc", model=None).code == 0
    assert codec("decode", tmp_path / "b.skc", "-o", tmp_path / "b.wav", model=None).code == 0
    assert len(audio.read(tmp_path / "b.wav", 16_000)) == len(audio.read(tmp_path / "a.wav", 16_000))
    monkeypatch.setattr(hub, "CODEC", tmp_path / "nothing")
    for command in (["encode", tmp_path / "a.wav", "-o", tmp_path / "c.skc"], ["roundtrip", tmp_path / "a.wav"]):
        said = one_sentence(codec(*command, model=None))
        assert "no codec comes with this copy of speechkit: name one with --model" in said


def test_another_model_is_refused(codec: Run, tmp_path: Path, models: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(0.5, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    result = codec("decode", tmp_path / "a.skc", "-o", tmp_path / "b.wav", model="other")
    hashes = r"a\.skc holds tokens of the codec causal \(\w{12}\), not of other \(\w{12}\): name causal with --model"
    assert re.search(hashes, one_sentence(result))
    assert not (tmp_path / "b.wav").exists()
    release(models / "recogniser")
    result = codec("encode", tmp_path / "a.wav", "-o", tmp_path / "b.skc", model="recogniser")
    assert "is no codec, which turns sound to tokens and back, but a Transcriber" in one_sentence(result)


# What was there stays


@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_the_former_file(
    codec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, failure: BaseException
) -> None:
    audio.write(tmp_path / "a.wav", babble(2, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    source, target = ("a.wav", "old.skc") if command == "encode" else ("a.skc", "old.wav")
    (tmp_path / target).write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    opened = Path.open

    class Full(io.FileIO):
        """A disk on which there is room for a kilobyte, and little time."""

        def write(self, data: Any) -> int:
            if self.tell() > 500:
                raise failure
            return super().write(data)

    def open_(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return Full(path, "w") if mode == "wb" else opened(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", open_)
    result = codec(command, tmp_path / source, "-o", tmp_path / target)
    if isinstance(failure, OSError):
        said = f"Cannot write {tmp_path / target}: No space left on device."
        assert (result.code, result.err) == (2, f"error: {said}\n")
    else:
        assert (result.code, result.err) == (130, "\n")
    assert (tmp_path / target).read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_cut_off_is_heard_until_there_in_a_pipe(codec: Run, tmp_path: Path, models: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(3, RATE), RATE)
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc")
    data = (tmp_path / "a.skc").read_bytes()
    command = [sys.executable, "-m", "speechkit", "codec", "decode", "-", "-o", "-", "--model", str(models / "causal")]
    done = subprocess.run(command, cwd=ROOT, input=data[:-100], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input is cut off or damaged: it ends after")
    assert len(done.stdout) > RATE


def test_the_help_is_quick(codec: Run) -> None:
    command = (
        "import sys\nfrom speechkit import cli\ntry:\n    cli.main(['codec', 'encode', '--help'])\n"
        "except SystemExit:\n    sys.exit(3 if {'torch', 'numpy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout
