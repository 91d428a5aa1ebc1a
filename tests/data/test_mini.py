"""The embedded corpus: what it holds, that it can be made again, and that it survives a killed run."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data import espeak as binding
from speechkit.data import mini, synthesis
from speechkit.data.manifest import from_librispeech
from speechkit.data.sentences import LONGEST, PARTS, part_of, sentences, vocabulary
from speechkit.data.synthesis import Style, Summary, generate, transcript
from speechkit.errors import InputError

try:
    import espeakng_loader  # noqa: F401

    HAS_ESPEAK = True
except ImportError:
    HAS_ESPEAK = False
needs_espeak = pytest.mark.skipif(not HAS_ESPEAK, reason="needs the extra speechkit[mini]")
VOICES = {"en-us+m2": 7, "en-gb+f2": 8, "en-gb-scotland+Annie": 9}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def texts_of(split: Path) -> dict[str, str]:
    lines = [line for file in split.rglob("*.trans.txt") for line in file.read_text().splitlines()]
    return {name: text for name, _, text in (line.partition(" ") for line in lines)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.prepare(tmp_path_factory.mktemp("cache"), 0.3, workers=1, dev_utterances=3, test_utterances=5)


def test_sentences_are_different_short_and_of_known_words() -> None:
    some = list(itertools.islice(sentences(3), 500))
    assert len(set(some)) == 500
    assert all(3 <= len(sentence.split()) <= LONGEST for sentence in some)
    assert {word for sentence in some for word in sentence.split()} <= vocabulary()
    assert 150 <= len(vocabulary()) <= 250
    assert some == list(itertools.islice(sentences(3), 500))
    assert some != list(itertools.islice(sentences(4), 500))


def test_an_hour_of_sentences_has_every_word() -> None:
    some = itertools.islice(sentences(0, "train"), 1400)
    assert {word for sentence in some for word in sentence.split()} == vocabulary()


def test_parts_share_no_sentence_whatever_the_seeds() -> None:
    drawn = {part: list(itertools.islice(sentences(seed, part), 100)) for seed, part in enumerate(PARTS)}
    assert all(part_of(sentence) == part for part, some in drawn.items() for sentence in some)
    with pytest.raises(ValueError, match="part must be one of"):
        next(sentences(0, "valid"))


@needs_espeak
def test_the_same_calls_give_the_same_samples() -> None:
    said = []
    for _ in range(2):
        with binding.Espeak() as espeak:
            assert espeak.sample_rate == 22050
            said.append([espeak.say("seven green apples", voice) for voice in ("en-us+f5", "en-gb+caleb", "en-us+f5")])
    for first, second in zip(*said, strict=True):
        assert len(first) > 10000
        np.testing.assert_array_equal(first, second)


@needs_espeak
def test_there_are_hundreds_of_voices_that_differ() -> None:
    with binding.Espeak() as espeak:
        assert {"en-us", "en-gb", "en-gb-scotland", "en-029"} <= set(espeak.accents())
        assert binding.SHAVIAN not in espeak.accents()
        assert len(espeak.voices()) > 500
        lengths = {len(espeak.say("where is the river", f"{accent}+f1")) for accent in espeak.accents()}
        assert len(lengths) > 4
        slow, fast = (len(espeak.say("where is the river", "en-us", rate=rate)) for rate in (110, 220))
        assert slow > 1.5 * fast


@needs_espeak
def test_an_unknown_voice_is_one_sentence() -> None:
    with binding.Espeak() as espeak, pytest.raises(InputError, match=r"no English voice 'en-us\+nobody'"):
        espeak.say("hello", "en-us+nobody")


def test_without_the_wheel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"pip install 'speechkit\[mini\]'"):
        binding.Espeak()


@needs_espeak
def test_the_corpus_has_librispeech_layout(corpus: Path) -> None:
    for split in mini.SPLITS:
        texts = texts_of(corpus / split)
        files = list((corpus / split).rglob("*.flac"))
        assert {file.stem for file in files} == set(texts)
        for file in files:
            speaker, chapter, _ = file.stem.split("-")
            assert file.relative_to(corpus / split).parts[:2] == (speaker, chapter)
            info = soundfile.info(file)
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert 0.8 < info.duration < (20 if len(texts[file.stem].split()) > 10 else 8)
        assert all(text == text.upper() for text in texts.values())
    assert sum(summary.seconds for summary in mini.summaries(corpus)) > 30


@needs_espeak
def test_a_split_becomes_a_manifest(corpus: Path) -> None:
    utterances = from_librispeech(corpus, "test-mini")
    assert {utterance.id: utterance.text for utterance in utterances} == texts_of(corpus / "test-mini")
    assert sum(utterance.seconds for utterance in utterances) == pytest.approx(
        Summary.load(corpus / "test-mini").seconds, abs=0.01
    )


@needs_espeak
def test_no_voice_and_no_sentence_of_dev_or_test_is_in_train(corpus: Path) -> None:
    voices = {split: set(Summary.load(corpus / split).voices.values()) for split in mini.SPLITS}
    variants = {split: {voice.partition("+")[2] for voice in some} for split, some in voices.items()}
    texts = {split: set(texts_of(corpus / split).values()) for split in mini.SPLITS}
    for held_out in sorted({*mini.SPLITS} - {"train-mini"}):
        assert not variants[held_out] & variants["train-mini"]
        assert not texts[held_out] & texts["train-mini"]
    assert not set(mini.DEV_VARIANTS) & set(mini.TEST_VARIANTS)
    with binding.Espeak() as espeak:
        assert {*mini.DEV_VARIANTS, *mini.TEST_VARIANTS} <= set(espeak.variants())


@needs_espeak
def test_the_noisy_split_is_the_clean_one_with_noise(corpus: Path) -> None:
    for clean in sorted((corpus / "test-mini").rglob("*.flac")):
        speaker, _, index = clean.stem.split("-")
        noisy = corpus / "test-mini-noisy" / speaker / "2" / f"{speaker}-2-{index}.flac"
        speech, mixed = soundfile.read(clean)[0], soundfile.read(noisy)[0]
        # A mixture that would clip is scaled as a whole.
        scale = np.dot(mixed, speech) / np.dot(speech, speech)
        snr_db = 10 * np.log10(np.mean((scale * speech) ** 2) / np.mean((mixed - scale * speech) ** 2))
        assert 4 < snr_db < 21


@needs_espeak
def test_the_long_split_has_the_sentences_of_the_clean_one_with_pauses_between_them(corpus: Path) -> None:
    clean, long = (texts_of(corpus / split) for split in ("test-mini", "test-mini-long"))
    assert len(long) == 1
    (name, text), *_ = long.items()
    assert sorted(text.split()) == sorted(word for sentence in clean.values() for word in sentence.split())
    assert all(sentence in text for sentence in clean.values())
    speaker, chapter, _ = name.split("-")
    wave, rate = soundfile.read(corpus / "test-mini-long" / speaker / chapter / f"{name}.flac")
    levels = np.sqrt(np.mean(wave[: len(wave) // 400 * 400].reshape(-1, 400) ** 2, axis=1))  # 25 ms each
    quiet = "".join("q" if level < 0.06 * levels.max() else "s" for level in levels)
    assert rate == 16000
    assert len([pause for pause in quiet.strip("q").split("s") if len(pause) >= 4]) >= len(clean) - 1


@needs_espeak
def test_one_in_seven_training_recordings_is_a_paragraph() -> None:
    texts = list(itertools.islice(mini._with_paragraphs(sentences(0, "train")), 28))
    assert [text.count(". ") for text in texts] == [*[0] * 6, 1, *[0] * 6, 2, *[0] * 6, 3, *[0] * 6, 4]
    assert " ".join(texts).replace(". ", " ") == " ".join(itertools.islice(sentences(0, "train"), 24 + 14))


@needs_espeak
def test_a_cached_corpus_is_not_made_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "Espeak", None)
    assert mini.prepare(corpus.parent, 0.3, workers=1, dev_utterances=3, test_utterances=5) == corpus


@needs_espeak
def test_at_24_khz_the_same_is_said_with_what_speech_has_above_8_khz(corpus: Path) -> None:
    before = digests(corpus)
    wide = mini.prepare(corpus.parent, 0.3, workers=1, dev_utterances=3, test_utterances=5, rate=24_000)
    assert (corpus.name, wide.name) == ("mini-v4-0.3min-3-5-seed0", "mini-v4-0.3min-3-5-seed0-24000hz")
    assert digests(corpus) == before
    for split in mini.SPLITS:
        assert texts_of(wide / split) == texts_of(corpus / split)
        assert Summary.load(wide / split).seconds == pytest.approx(Summary.load(corpus / split).seconds, rel=1e-3)
    hiss, tone = 0.0, 0.0  # what espeak-ng says, and what the room alone has
    for file in (wide / "test-mini").rglob("*.flac"):
        wave, rate = soundfile.read(file)
        assert rate == 24_000
        power, hz = np.abs(np.fft.rfft(wave)) ** 2, np.fft.rfftfreq(len(wave), 1 / rate)
        hiss += power[(hz > 8_000) & (hz < 11_000)].mean()
        tone += power[hz > 11_300].mean()
    assert 10 * np.log10(hiss / tone) > 10


@needs_espeak
def test_the_number_of_workers_does_not_change_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "_SHARD", 2)
    texts = list(itertools.islice(sentences(1), 6))
    for workers in (1, 2):
        generate(texts, tmp_path / str(workers), "some", voices=VOICES, workers=workers, style=Style(noisy=1))
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    assert len(digests(tmp_path / "1")) == 6 + 3 + 1


@needs_espeak
def test_a_killed_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def killed(*arguments: object, **named: object) -> Summary:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(mini, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        mini.prepare(tmp_path, 0.05, workers=1, dev_utterances=1, test_utterances=1)
    root = mini.prepare(tmp_path, 0.05, workers=1, dev_utterances=1, test_utterances=1)
    assert len(calls) == len(mini.SPLITS) + 1
    assert {path.name for path in root.iterdir()} == set(mini.SPLITS)


@needs_espeak
def test_a_split_appears_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = synthesis.speak

    def speak(*arguments: object) -> np.ndarray:
        seen.append((tmp_path / "some").exists())
        if len(seen) == 3:
            raise OSError(28, "No space left on device")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(synthesis, "speak", speak)
    with pytest.raises(InputError, match="No space left on device"):
        generate(["one two three"] * 4, tmp_path, "some", voices=VOICES, workers=1)
    assert seen == [False] * 3
    assert list(tmp_path.iterdir()) == []


@needs_espeak
def test_texts_are_cycled_to_fill_the_hours_and_opus_is_written(tmp_path: Path) -> None:
    made = generate(["We're here.", "Twenty-one apples!"], tmp_path, "some", 12 / 3600, VOICES, 1, suffix="opus")
    assert 9 < made.seconds < 15
    assert set(texts_of(tmp_path / "some").values()) == {"WE'RE HERE", "TWENTY ONE APPLES"}
    file = next((tmp_path / "some").rglob("*.opus"))
    assert soundfile.info(file).subtype == "OPUS"
    with pytest.raises(InputError, match="already there"):
        generate(["one"], tmp_path, "some", voices=VOICES, workers=1)


@pytest.mark.parametrize("content", ["", "[1]", '{"split": "some"}', None])
def test_a_damaged_summary_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(InputError, match=r"summary\.json is damaged \(.*\): delete .* to have it made anew$"):
        Summary.load(tmp_path)


@pytest.mark.parametrize("text", ["42 apples", "", "...", "¿qué?"])
def test_a_text_that_is_not_english_words_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="numbers spelled out"):
        transcript(text)


@needs_espeak
def test_the_command_makes_a_split_of_given_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the dog is sleeping\n\nwhere is the river\n")
    arguments = [str(tmp_path / "out"), "--texts", str(texts), "--minutes", "0.1", "--workers", "1", "--split", "mine"]
    assert mini.main(arguments) == 0
    assert "utterances" in capsys.readouterr().out
    assert mini.main(arguments) == 2
    assert "already there" in capsys.readouterr().err
    assert mini.main([str(tmp_path), "--texts", str(tmp_path / "missing.txt")]) == 2
