"""Corpora of several layouts become utterances; what is missing or wrong in them is named and counted."""

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechkit import audio
from speechkit.data import manifest
from speechkit.data.utterance import Utterance, normalized
from speechkit.errors import InputError
from tests.paths import DATA, needs_data


def sound(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)), rate)
    return path


def chapter(root: Path, split: str = "train", count: int = 4, suffix: str = ".flac") -> Path:
    folder = root / split / "12" / "34"
    names = [f"12-34-{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        sound(folder / f"{name}{suffix}", 0.5 + 0.1 * number)
    (folder / "12-34.trans.txt").write_text("".join(f"{name} SENTENCE NUMBER {name[-1]}\n" for name in names))
    return folder


@pytest.mark.parametrize("suffix", audio.SUFFIXES)
def test_librispeech_layout_in_any_format(tmp_path: Path, suffix: str) -> None:
    chapter(tmp_path, suffix=suffix)
    found = manifest.from_librispeech(tmp_path, "train")
    assert [utterance.id for utterance in found] == [f"12-34-000{n}" for n in range(4)]
    assert found[1].text == "SENTENCE NUMBER 1"
    assert (found[1].speaker, found[1].split) == ("12", "train")
    assert found[1].seconds == pytest.approx(0.6, abs=0.1)


def test_ljspeech_layout(tmp_path: Path) -> None:
    sound(tmp_path / "wavs" / "LJ1.wav", rate=22_050)
    sound(tmp_path / "wavs" / "LJ2.flac", rate=22_050)
    (tmp_path / "metadata.csv").write_text('LJ1|Dr. "X|Doctor "X\nLJ2|two|two\n')
    found = manifest.from_ljspeech(tmp_path)
    assert [(u.id, u.text, u.rate) for u in found] == [("LJ1", 'Doctor "X', 22_050), ("LJ2", "two", 22_050)]


@pytest.mark.parametrize("header", [True, False])
def test_a_folder_with_a_tsv(tmp_path: Path, header: bool) -> None:
    sound(tmp_path / "sub" / "a.wav")
    sound(tmp_path / "b.flac")
    first = "text\tpath\nhello there\tsub/a.wav\nbye\tb.flac\n"
    rows = "sub/a.wav\thello there\nb.flac\tbye\n"
    (tmp_path / "t.tsv").write_text(first if header else rows)
    found = manifest.from_folder(tmp_path, tmp_path / "t.tsv")
    assert [(u.id, u.text) for u in found] == [("sub/a", "hello there"), ("b", "bye")]


def test_a_folder_with_the_names_of_other_toolkits(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", 1.0)
    record = {"audio_filepath": "a.wav", "duration": 0.5, "text": "x", "offset": 0.25, "sample_rate": 16_000}
    (tmp_path / "m.json").write_text(json.dumps(record))
    (found,) = manifest.from_folder(tmp_path, tmp_path / "m.json")
    assert (found.start, found.seconds) == (0.25, 0.5)
    np.testing.assert_array_equal(found.wave(16_000), audio.read(tmp_path / "a.wav")[4000:12_000])


def test_a_manifest_is_read_back_and_may_move_with_its_folder(tmp_path: Path) -> None:
    chapter(tmp_path / "here")
    sound(tmp_path / "elsewhere.wav")
    extra = Utterance("x", str(tmp_path / "elsewhere.wav"), "naïve", 0.25, 16_000, start=0.1)
    written = [*manifest.from_librispeech(tmp_path / "here", "train"), extra]
    manifest.write_manifest(tmp_path / "here" / "manifests.jsonl", written)
    assert manifest.read_manifest(tmp_path / "here" / "manifests.jsonl") == written
    (tmp_path / "here").rename(tmp_path / "there")
    moved = manifest.read_manifest(tmp_path / "there" / "manifests.jsonl")
    assert [u.id for u in moved] == [u.id for u in written]


def test_lhotse_shards_are_unpacked_once(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse", reason="lhotse is not installed")
    cuts = []
    for number in range(3):
        cut = lhotse.Recording.from_file(sound(tmp_path / f"{number}.wav", 0.5 + number / 10)).to_cut()
        cut.id = f"cut-{number}"
        cut.supervisions = [lhotse.SupervisionSegment("s", cut.recording_id, 0, cut.duration, text=f"text {number}")]
        cuts.append(cut)
    (tmp_path / "shar").mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", {"recording": "flac"}, shard_size=2)
    found = manifest.from_lhotse_shar(tmp_path / "shar", tmp_path / "out")
    assert [(u.id, u.text) for u in found] == [(f"cut-{n}", f"text {n}") for n in range(3)]
    np.testing.assert_allclose(found[2].wave(16_000), audio.read(tmp_path / "2.wav"), atol=1e-4)
    for shard in (tmp_path / "shar").iterdir():
        shard.unlink()
    assert manifest.find(str(tmp_path / "out" / "manifest.jsonl"), None, tmp_path) == found


def test_damaged_shards_are_said_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("lhotse", reason="lhotse is not installed")
    (tmp_path / "shar").mkdir()
    (tmp_path / "shar" / "cuts.000000.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"shar cannot be unpacked to .*out: [^\n]+$"):
        manifest.from_lhotse_shar(tmp_path / "shar", tmp_path / "out")


def test_shards_without_lhotse_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "lhotse":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'speechkit\[lhotse\]'"):
        manifest.from_lhotse_shar(tmp_path, tmp_path / "out")


def test_a_few_bad_files_are_skipped_and_each_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = chapter(tmp_path, count=6)
    (folder / "12-34-0001.flac").unlink()
    (folder / "12-34-0002.flac").write_bytes(b"")
    (folder / "12-34-0003.flac").write_bytes(b"no audio")
    with caplog.at_level(logging.WARNING):
        found = manifest.from_librispeech(tmp_path, "train")
    assert [u.id[-1] for u in found] == ["0", "4", "5"]
    assert len(caplog.records) == 3
    for number, record in enumerate(caplog.records, 1):
        assert f"12-34-000{number}.flac" in record.getMessage()


def test_too_many_bad_files_are_an_error_that_names_one(tmp_path: Path) -> None:
    folder = chapter(tmp_path, count=6)
    for number in range(4):
        (folder / f"12-34-000{number}.flac").unlink()
    with pytest.raises(InputError, match=r"4 of 6 utterances of .*train cannot be used.*no file .*12-34-0000.flac"):
        manifest.from_librispeech(tmp_path, "train")
    assert len(manifest.from_librispeech(tmp_path, "train", max_bad=0.7)) == 2


def test_texts_that_are_empty_or_cannot_be_spelled_are_bad() -> None:
    texts = ["Hello, World!", "", " ... ", "room 5", "naïve", "слово"]
    report = normalized([Utterance(f"u{n}", "f", text, 1.0, 16_000) for n, text in enumerate(texts)])
    assert [u.text for u in report.good] == ["hello world", "naive"]
    assert len(report.bad) == 4
    assert "unknown characters: 5" in report.bad[2]
    assert "u5" in report.bad[3]
    with pytest.raises(InputError, match="4 of 6 utterances of texts"):
        report.within(0.01, "texts")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", "Line 1 of .* is not JSON"),
        ("\n[1]", "Line 2 of .* should be a JSON object, got list"),
        ('{"text": "x"}', "line 1 of .* has no path"),
        ('{"path": "a.wav", "duration": "long"}', "line 1 of .* no number .*: seconds is 'long'"),
        ('{"path": "a.wav", "duration": NaN}', "line 1 of .* no number .*: seconds is 'nan'"),
        ('{"path": "a.wav", "duration": Infinity}', "no number .*: seconds is 'inf'"),
        ('{"path": "a.wav", "duration": 1e400}', "no number .*: seconds is 'inf'"),
        ('{"path": "a.wav", "duration": -1}', "no number .*: seconds is '-1'"),
        ('{"path": "a.wav", "duration": true}', "no number .*: seconds is 'True'"),
        ('{"path": "a.wav", "offset": -0.5}', "no number .*: start is '-0.5'"),
        ('{"path": "a.wav", "sample_rate": 1e400}', "no number .*: rate is 'inf'"),
        ('{"path": "a.wav", "sample_rate": -16000}', "no number .*: rate is '-16000'"),
        ('{"path": "a.wav", "duration": 1' + "0" * 400 + "}", "no number .*: seconds is '1000"),
        ('{"path": "a.wav", "duration": 1' + "0" * 5000 + "}", "Line 1 of .* is not JSON: Exceeds the limit"),
        ("[" * 100_000, "Line 1 of .* is not JSON: maximum recursion depth"),
        ("\n\xff", "Cannot read .* as text"),
        ("", "has no utterance"),
    ],
)
def test_a_manifest_that_is_wrong_is_said(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        manifest.read_manifest(tmp_path / "m.jsonl")
    assert "m.jsonl" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["nan", "-3", "1e400", "long"])
def test_a_table_that_is_wrong_is_said(tmp_path: Path, value: str) -> None:
    (tmp_path / "t.tsv").write_text(f"path\ttext\tduration\na.wav\thello\t{value}\n")
    with pytest.raises(InputError, match=r"line 2 of .*t\.tsv has a value that is no number"):
        manifest.find(str(tmp_path / "t.tsv"), None, tmp_path)
    (tmp_path / "t.tsv").write_text("a.wav\t" + "x" * 200_000 + "\n")
    with pytest.raises(InputError, match=r"Line 1 of .*t\.tsv cannot be read: field larger than field limit"):
        manifest.find(str(tmp_path / "t.tsv"), None, tmp_path)


def test_zeros_mean_that_the_file_says_it(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", 0.5)
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav", "text": "x", "duration": 0, "sample_rate": 0}')
    (found,) = manifest.read_manifest(tmp_path / "m.jsonl")
    assert (found.seconds, found.rate) == (0.5, 16_000)


@pytest.mark.parametrize("known", [{}, {"seconds": 1.0, "rate": 16_000}])
@pytest.mark.parametrize("name", ["a\0b.wav", "\ud800.wav", "a" * 5000])
def test_a_name_that_no_file_can_have_is_counted_as_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, known: dict[str, float]
) -> None:
    sound(tmp_path / "a.wav")
    records = [{"path": "a.wav", "text": "x"}, {"path": name, "text": "y", **known}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, records)))
    with caplog.at_level(logging.WARNING):
        assert [u.text for u in manifest.read_manifest(tmp_path / "m.jsonl")] == ["x"]
    (record,) = caplog.records
    assert record.getMessage().startswith(("skipped: There is no file", "skipped: Cannot read"))
    assert record.getMessage().isprintable()


def test_an_utterance_that_starts_after_the_end_is_counted_as_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound(tmp_path / "a.wav", 0.5)
    records = [{"path": "a.wav", "text": "x", "offset": 0.25}, {"path": "a.wav", "text": "y", "offset": 7}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, records)))
    with caplog.at_level(logging.WARNING):
        assert [u.seconds for u in manifest.read_manifest(tmp_path / "m.jsonl")] == [0.25]
    assert "a starts at 7.0 s, but" in caplog.text


def test_texts_with_unusual_line_ends_come_back(tmp_path: Path) -> None:
    utterance = Utterance("x", str(sound(tmp_path / "a.wav")), "one\u2028two\x85three", 0.5, 16_000)
    manifest.write_manifest(tmp_path / "m.jsonl", [utterance])
    assert manifest.read_manifest(tmp_path / "m.jsonl") == [utterance]


def test_a_wrong_name_brings_the_near_ones(tmp_path: Path) -> None:
    chapter(tmp_path, "train-clean-100")
    with pytest.raises(InputError, match=r"no split train-clean in .*did you mean train-clean-100\?"):
        manifest.find("train-clean", tmp_path, tmp_path)
    with pytest.raises(InputError, match="which is no folder"):
        manifest.find("train", tmp_path / "nowhere", tmp_path)
    with pytest.raises(InputError, match="There is no file"):
        manifest.find("nothing.jsonl", tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"train-clean-100 is neither a manifest .* needs .*data.root"):
        manifest.find("train-clean-100", None, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no transcript"):
        manifest.find("empty", tmp_path, tmp_path)


def test_what_a_user_names_is_found_by_its_form(tmp_path: Path) -> None:
    chapter(tmp_path, "train")
    by_name = manifest.find("train", tmp_path, tmp_path)
    assert manifest.find(str(tmp_path / "train"), None, tmp_path) == by_name
    manifest.write_manifest(tmp_path / "manifests" / "train.jsonl", by_name[:2])
    assert manifest.find("train", tmp_path, tmp_path) == by_name[:2]


@needs_data
def test_real_recordings_agree_with_their_manifest() -> None:
    listed = {u.id: u for u in manifest.read_manifest(DATA / "asr" / "manifest.jsonl") if u.split == "test-other"}
    found = manifest.from_librispeech(DATA / "asr", "test-other")
    assert {u.id for u in found} == set(listed)
    for utterance in found:
        assert utterance.text == listed[utterance.id].text
        assert utterance.seconds == pytest.approx(listed[utterance.id].seconds, abs=1e-3)
