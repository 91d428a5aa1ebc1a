"""`speechkit eval` of a codec, from its command line to what it writes."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import jiwer
import numpy as np
import pytest
import soundfile
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from speechkit import audio, cli, eval, hub, load
from speechkit.codecs import roundtrip
from speechkit.codecs.codec import Codec
from speechkit.codecs.roundtrip import RoundTrip
from speechkit.configuration import options
from speechkit.errors import InputError
from speechkit.evaluation.codec import CodecEvaluation
from speechkit.metrics.audio import averaged, similarity
from tests.asr import tiny
from tests.test_audio_metrics import Loudness, scripted, tone
from tests.test_codec_command import RATE, saved

TEXTS = ["A BAD CAB", "FED A HAG", "A BED, DEAF"]
SECONDS = (0.8, 1.4, 2.0)


class Models(NamedTuple):
    causal: Path
    residual: Path
    recogniser: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(
        saved(folder / "causal"), saved(folder / "residual", codebooks=3), tiny.release(folder / "recogniser")
    )  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The split `test` in LibriSpeech's layout, recordings that begin with a voice, and `sounds` without texts."""
    root = tmp_path / "corpus"
    for split in ("test", "sounds"):
        (root / split / "1" / "2").mkdir(parents=True)
        for i, seconds in enumerate(SECONDS):
            wave = np.concatenate([tone(150 + 40 * i, 0.3), tiny.babble(seconds - 0.3, seed=i)])
            audio.write(root / split / "1" / "2" / f"1-2-{i}.wav", wave, tiny.RATE)
    (root / "test" / "1" / "2" / "1-2.trans.txt").write_text("".join(f"1-2-{i} {t}\n" for i, t in enumerate(TEXTS)))
    return root


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: Models) -> Run:
    """What `python -m speechkit.eval` with these words writes."""

    def started(*words: object, model: Path = models.causal) -> dict[str, Any]:
        out = tmp_path / "out"
        given = [f"model={model}", f"recogniser={models.recogniser}", f"out={out}", "device=cpu", *map(str, words)]
        monkeypatch.setattr(sys, "argv", ["speechkit eval", *given])
        eval.main()
        found: dict[str, Any] = json.loads((out / "scores.json").read_text())
        return found

    return started


def waves(corpus: Path, split: str = "test") -> list[np.ndarray]:
    return [audio.read(path, RATE) for path in sorted((corpus / split).rglob("*.wav"))]


# What is measured


def test_figures_are_those_of_the_codec(run: Run, corpus: Path, models: Models) -> None:
    found = run(f"data.root={corpus}", "data.test=[test]")
    (row,) = found["scores"]
    codec: Codec = load(models.causal)
    heard = waves(corpus)
    coded = [codec.encode(torch.from_numpy(wave)) for wave in heard]
    back = [codec.decode(codes)[0].numpy() for codes in coded]
    expected = averaged([(1, similarity(ours, wave, RATE)) for ours, wave in zip(back, heard, strict=True)])
    for name, value in expected.items():
        assert row[name] == (None if value is None else pytest.approx(value, rel=1e-3)), name
    assert (row["split"], row["whole"], row["recordings"], row["skipped"]) == ("test", True, 3, 0)
    assert row["seconds"] == pytest.approx(sum(map(len, heard)) / RATE)
    codes = torch.cat([one.values[0] for one in coded])
    assert row["bits_per_second"] == pytest.approx(10 * len(codes) / row["seconds"])
    counts = np.bincount(codes, minlength=600)
    share = counts[counts > 0] / len(codes)
    assert row["utilization"] == pytest.approx(np.count_nonzero(counts) / 600)
    assert row["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert row["real_time_factor"] == pytest.approx(row["encode_wall"] + row["decode_wall"])
    assert min(row["encode_wall"], row["decode_wall"]) > 0
    assert row["counted"]["mel_distance"] == 3
    assert found["skipped"] == {"test": []}


def test_words_are_compared_before_and_after(run: Run, corpus: Path, models: Models) -> None:
    (row,) = run(f"data.root={corpus}", "data.test=[test]")["scores"]
    codec, recogniser = load(models.causal), load(models.recogniser)
    texts = ["a bad cab", "fed a hag", "a bed deaf"]
    back = [codec.decode(codec.encode(torch.from_numpy(wave)))[0].clamp(-1, 1).numpy() for wave in waves(corpus)]
    before = [recogniser.transcribe(str(path)).text for path in sorted((corpus / "test").rglob("*.wav"))]
    after = [recogniser.transcribe(wave, RATE).text for wave in back]
    assert row["words"] == 9
    assert row["wer_original"] == pytest.approx(jiwer.wer(texts, before))
    assert row["wer"] == pytest.approx(jiwer.wer(texts, after))


def test_the_table_has_a_column_for_every_split(
    run: Run, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"data.root={corpus}", "data.test=[test,sounds]", "limit=1")
    said, written = capsys.readouterr().out, (tmp_path / "out" / "scores.txt").read_text()
    assert f"scores.json and scores.txt are in {tmp_path / 'out'}" in said
    for text in (said, written):
        lines = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in text.splitlines() if line.strip()}
        assert lines["recordings"] == ["1", "1"]
        assert lines["words"] == ["3", "0"]
        assert lines["WER, %"][1] == "-"
        assert lines["WER, %"][0] != "-"
        assert lines["bit rate, bit/s"] == ["3000", "3000"]
        assert {"STOI", "PESQ, wideband", "SI-SDR, dB", "mel-cepstral distortion, dB", "V/UV F1"} <= set(lines)
    assert said.count("sounds: there are no texts (of English words), and so no word error rate") == 1


@pytest.mark.parametrize("codebooks", [None, 2])
def test_codebooks_are_counted_one_by_one(run: Run, corpus: Path, models: Models, codebooks: int | None) -> None:
    words = ["recogniser=null"] + ([] if codebooks is None else [f"codebooks={codebooks}"])
    found = run(f"data.root={corpus}", "data.test=[test]", *words, model=models.residual)
    (row,) = found["scores"]
    codec: Codec = load(models.residual)
    codes = torch.cat([codec.encode(torch.from_numpy(wave), codebooks=codebooks).values[0] for wave in waves(corpus)])
    assert codes.shape[1] == found["codebooks"] == (codebooks or 3)
    assert row["bits_per_second"] == pytest.approx(10 * codes.numel() / row["seconds"])
    assert row["utilization"] == pytest.approx(np.mean([len(set(column.tolist())) / 600 for column in codes.T]))
    assert (row["wer"], found["recogniser"]) == (None, None)


def test_utmos_hears_both(run: Run, corpus: Path, tmp_path: Path) -> None:
    model = scripted(Loudness(), tmp_path / "utmos.pt")
    (row,) = run(f"data.root={corpus}", "data.test=[test]", "recogniser=null", f"utmos={model}")["scores"]
    peaks = [np.abs(audio.read(path, 16_000)).max() for path in sorted((corpus / "test").rglob("*.wav"))]
    assert row["utmos_original"] == pytest.approx(16 + np.mean(peaks), abs=0.02)
    assert row["utmos"] > 16
    assert row["utmos"] != row["utmos_original"]
    assert row["counted"]["utmos"] == 3


def test_parts_of_files_are_recordings(run: Run, corpus: Path, tmp_path: Path) -> None:
    long = np.concatenate([tiny.babble(1, seed=1), tiny.babble(1, seed=2)])
    audio.write(tmp_path / "long.wav", long, tiny.RATE)
    lines = [{"path": "long.wav", "text": "a cab", "start": start, "seconds": 1.0} for start in (0.0, 1.0)]
    (tmp_path / "parts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (row,) = run(f"data.test=[{tmp_path / 'parts.jsonl'}]")["scores"]
    assert (row["recordings"], row["seconds"], row["words"]) == (2, pytest.approx(2.0), 4)


def test_silence_counts_where_it_means_something(run: Run, corpus: Path, tmp_path: Path) -> None:
    audio.write(corpus / "sounds" / "silence.wav", np.zeros(8000), 16_000)
    (row,) = run(f"data.root={corpus}", "data.test=[sounds]", "recogniser=null")["scores"]
    assert row["recordings"] == row["counted"]["mel_distance"] == 4
    assert row["counted"]["si_sdr_db"] == row["counted"]["mcd_db"] == 3
    assert "(of 3)" in (tmp_path / "out" / "scores.txt").read_text()


def test_a_long_recording_is_held_in_parts(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roundtrip, "SEGMENT_S", 0.5)
    given = 0

    def pieces() -> Iterator[np.ndarray]:
        nonlocal given
        for i in range(40):
            given += RATE // 10
            yield tiny.babble(0.2, RATE, seed=i)[: RATE // 10]

    trip = RoundTrip(load(models.causal), pieces())
    ahead = []
    for ours, theirs in trip:
        assert len(ours) == len(theirs) == RATE // 2
        ahead.append(given - trip.samples)
    assert (trip.samples, trip.seconds) == (given, 4.0)
    assert max(ahead) <= 0.5 * RATE


@pytest.mark.parametrize("whole_s", [0.0, 0.5, 2.0])
def test_whole_or_as_a_stream_a_causal_codec_gives_the_same(models: Models, whole_s: float) -> None:
    codec: Codec = load(models.causal)
    wave = tiny.babble(1, RATE)
    trip = RoundTrip(codec, iter(np.array_split(wave, 7)), whole_s=whole_s)
    ((ours, theirs),) = trip
    assert np.array_equal(theirs, wave)
    np.testing.assert_allclose(ours, codec.decode(codec.encode(torch.from_numpy(wave)))[0], atol=1e-5)
    assert trip.costs.bits_per_second == 3000
    assert min(trip.costs) > 0
    assert list(RoundTrip(codec, iter(()))) == []


# What goes wrong


def test_what_is_not_finite_is_no_sound(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    codec: Codec = load(models.causal)
    monkeypatch.setattr(codec, "decode", lambda _: torch.full((1, RATE), torch.nan))
    with pytest.raises(InputError, match="the codec gives NaN or Inf back after 0 s"):
        list(RoundTrip(codec, iter([tiny.babble(1, RATE)]), whole_s=2))


def test_damaged_recordings_are_named_and_the_others_scored(
    run: Run, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = corpus / "test" / "1" / "2"
    soundfile.write(folder / "1-2-1.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")  # its header is good
    (folder / "1-2-9.wav").write_bytes(b"RIFF, but no more")
    found = run(f"data.root={corpus}", "data.test=[test]")
    (row,) = found["scores"]
    assert (row["recordings"], row["skipped"], row["words"]) == (2, 2, 6)
    assert sorted(name in said for said in found["skipped"]["test"] for name in ("1-2-1.wav", "1-2-9.wav")) == [
        False, False, True, True,
    ]  # fmt: skip
    assert "test: 2 recordings, 2 skipped" in capsys.readouterr().out


def test_a_split_without_a_usable_recording_does_not_cost_the_scores_before(
    run: Run, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (corpus / "sounds").rglob("*.wav"):
        soundfile.write(path, np.full(16000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(SystemExit) as stopped:
        run(f"data.root={corpus}", "data.test=[test,sounds]", "recogniser=null")
    assert stopped.value.code == 2
    assert "sounds has no recording that can be used" in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["split"] for row in found["scores"]] == ["test"]


def test_ctrl_c_keeps_what_was_scored(
    run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard, count = CodecEvaluation._heard, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return heard(*arguments)

    monkeypatch.setattr(CodecEvaluation, "_heard", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(f"data.root={corpus}", "data.test=[sounds,test]")
    assert stopped.value.code == 130
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [(row["split"], row["whole"], row["recordings"]) for row in found["scores"]] == [
        ("sounds", True, 3), ("test", False, 2),
    ]  # fmt: skip
    assert "2, stopped" in (tmp_path / "out" / "scores.txt").read_text()
    assert f"interrupted; what was scored before is in {tmp_path / 'out'}" in capsys.readouterr().out


def test_without_the_default_recogniser_there_are_no_word_error_rates(
    run: Run, corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "DEFAULT", tmp_path / "nothing")
    found = run(f"data.root={corpus}", "data.test=[test]", "recogniser=default")
    assert found["scores"][0]["wer"] is None
    assert "no word error rates: no model comes with this copy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["beam=2"], "beam means nothing to the evaluation of a Codec"),
        (["recipe=libritts_wavtokenizer", "trainer.max_steps=3"], "trainer.max_steps means nothing to the evaluation"),
        (["codebooks=2"], "this codec has 1 codebook, not 2"),
        (["codebooks=0"], "codebooks must be at least 1, got 0"),
        (["utmos=nowhere.pt"], "there is no file or folder nowhere.pt"),
        (["recogniser=nowhere"], "nowhere is no file or folder here"),
        (["recogniser={model}"], "is no model for recognition but a Codec"),
        (["recogniser=[a]"], "recogniser must be a text or null, got ['a']"),
        (["data.test=[nowhere]"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    run: Run, corpus: Path, models: Models, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(f"data.root={corpus}", "data.test=[test]", *(word.format(model=models.causal) for word in words))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sentence in said


def test_a_model_of_another_kind_is_refused(run: Run, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load", lambda *_: object())
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError, match="is a object: only recognisers and codecs can be scored"):
        run(f"data.root={corpus}")


# Recipes


def test_a_recipe_gives_the_data(
    models: Models, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the console command, on LibriTTS' layout, whose texts lie beside the recordings."""
    for i, path in enumerate(sorted((corpus / "test").rglob("*.wav"))):
        path.with_suffix(".normalized.txt").write_text(TEXTS[i].capitalize() + ".\n")
    next((corpus / "test").rglob("*.trans.txt")).unlink()
    (corpus / "test").rename(corpus / "test-clean")
    (corpus / "sounds").rename(corpus / "test-other")
    out = tmp_path / "out"
    words = ["recipe=libritts_wavtokenizer", f"model={models.causal}", f"data.root={corpus}", f"out={out}"]
    monkeypatch.setattr(sys, "argv", ["speechkit"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", *words, f"recogniser={models.recogniser}", "device=cpu"])
    assert ended.value.code == 0, capsys.readouterr().err
    rows = json.loads((out / "scores.json").read_text())["scores"]
    assert [(row["split"], row["words"]) for row in rows] == [("test-clean", 9), ("test-other", 0)]


@pytest.mark.parametrize("recipe", options("recipe"))
@pytest.mark.parametrize("words", [[], ["data.root=/corpus"]])
def test_every_recipe_composes(recipe: str, words: list[str]) -> None:
    with hydra.initialize_config_module("speechkit.conf", version_base="1.3"):
        config = hydra.compose("eval", [f"recipe={recipe}", "+release=x", *words], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    chosen = eval._chosen(plain)
    assert set(chosen) == {*eval.OPTIONS, "release", "data"}
    assert all(split.startswith("test-") for split in chosen.data.test)
    assert ("test-mini" in chosen.data.test) == (not words)
    eval._check(chosen)


@pytest.mark.parametrize(("job", "kind"), [("codec", "codec"), (None, "asr"), ("recognition", "asr")])
def test_without_a_model_it_is_the_one_that_comes_along(job: str | None, kind: str) -> None:
    assert eval._default({"recipe": "any", "job": job}) == str(hub.default(kind))


def test_without_a_model_there_is_none_of_other_kinds() -> None:
    with pytest.raises(InputError, match="name one with model=FOLDER, .* `speechkit train recipe=any` writes"):
        eval._default({"recipe": "any", "job": "tokens"})
