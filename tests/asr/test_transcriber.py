"""Transcribing: whole, in blocks and live give one text, whatever comes in."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from speechkit import audio
from speechkit.asr import transcriber as module
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.pauses import windows
from speechkit.asr.transcriber import Transcriber
from speechkit.asr.transcript import Transcript, joined
from speechkit.errors import InputError
from speechkit.text import CharTokenizer, train_sentencepiece
from tests.asr.tiny import RATE, SYMBOLS, babble, configuration, recognizer

FULL = {"contexts": ((-1, -1),), "causal": False}


def transcriber(contexts: tuple[tuple[int, int], ...] = ((4, 1), (4, 0)), **encoder: object) -> Transcriber:
    return Transcriber(recognizer(configuration(contexts, **encoder)), CharTokenizer(SYMBOLS))


def cut(wave: np.ndarray, count: int, seed: int = 0) -> list[np.ndarray]:
    return np.split(wave, np.sort(np.random.default_rng(seed).integers(0, len(wave), count)))


def said(result: Transcript) -> tuple[object, ...]:
    return result.text, [(w.text, w.start_s, w.end_s) for w in result.words], result.seconds


@pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
@pytest.mark.parametrize("style", ["chunked_limited", "regular"])
def test_a_stream_says_what_the_whole_says(decoder: str, style: str) -> None:
    model = transcriber(style=style)
    for latency, frames in zip(model.latencies_ms * 2, (320, 321, 327, 328), strict=True):  # whole and broken steps
        wave = babble(4)[: frames * 160 + 77]
        whole = model.transcribe(wave, latency_ms=latency, decoder=decoder)
        assert len(whole.words) > 3
        stream = model.stream(latency_ms=latency, decoder=decoder)
        for piece in cut(wave, 12):
            stream.push(piece)
        assert said(stream.finish()) == said(whole)
        assert stream.text == whole.text


@pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
def test_words_lie_within_the_recording(decoder: str) -> None:
    model, last = transcriber(), set()
    for samples in range(RATE // 2, 2 * RATE, 1279):
        wave = babble(2)[:samples]
        stream = model.stream(decoder=decoder)
        for piece in cut(wave, 5):
            stream.push(piece)
            assert all(0 <= w.start_s <= w.end_s <= stream.seconds for w in stream.words)
        results = (model.transcribe(wave, decoder=decoder), stream.finish())
        for words in (*(result.words for result in results), stream.words, stream.settled):
            assert all(0 <= w.start_s <= w.end_s <= samples / RATE for w in words)
        assert stream.words == results[1].words
        last |= {samples / RATE - result.words[-1].end_s for result in results if result.words}
    assert min(last) < 1e-3  # some words are cut short by the end


def test_segments_are_recordings_of_their_own_with_the_times_of_the_stream() -> None:
    model = transcriber()
    first, second = babble(3)[: 300 * 160], babble(3, seed=5)
    stream = model.stream(latency_ms=80)
    for piece in cut(first, 5):
        stream.push(piece)
    one = stream.segment(latency_ms=0)
    for piece in cut(second, 5):
        stream.push(piece)
        assert all(3 <= word.start_s <= word.end_s <= stream.seconds for word in stream.words)
    two = stream.finish()
    assert said(one) == said(model.transcribe(first, latency_ms=80))
    whole = model.transcribe(second, latency_ms=0)
    assert len(whole.words) > 3
    assert (two.text, two.seconds) == (whole.text, whole.seconds)
    assert [round(word.start_s - 3, 3) for word in two.words] == [word.start_s for word in whole.words]
    assert [round(word.end_s - 3, 3) for word in two.words] == [word.end_s for word in whole.words]


def test_a_border_is_refused_where_the_next_segment_could_not_be_heard() -> None:
    stream = transcriber().stream()
    stream.push(babble(1))
    with pytest.raises(InputError, match="no context of this model has a look-ahead of at most -1 ms"):
        stream.segment(latency_ms=-1)
    assert stream.segment().seconds == 1  # what was said is not lost
    stream.finish()
    with pytest.raises(ValueError, match="was finished"):
        stream.segment()


def test_streams_of_all_latencies_run_side_by_side() -> None:
    model, waves = transcriber(), [babble(3, seed=seed) for seed in range(4)]
    latencies = model.latencies_ms * 2
    streams = [model.stream(latency_ms=latency) for latency in latencies]
    for pieces in zip(*(cut(wave, 6, seed=7) for wave in waves), strict=True):
        for stream, piece in zip(streams, pieces, strict=True):
            stream.push(piece)
    for stream, wave, latency in zip(streams, waves, latencies, strict=True):
        assert said(stream.finish()) == said(model.transcribe(wave, latency_ms=latency))


def test_latencies_give_different_texts() -> None:
    model, wave = transcriber(), babble(3.3)
    assert model.latencies_ms == [80, 0]
    assert model.transcribe(wave, latency_ms=0).text != model.transcribe(wave, latency_ms=80).text
    assert said(model.transcribe(wave)) == said(model.transcribe(wave, latency_ms=130))


@pytest.mark.parametrize("tokenizer", ["characters", "pieces"])
def test_what_is_settled_never_changes(tokenizer: str, tmp_path: Path) -> None:
    if tokenizer == "characters":
        model = transcriber()
    else:
        pieces = train_sentencepiece(["bad cab dab", "add a bad cab"], tmp_path, 9, "bpe")
        model = Transcriber(recognizer(configuration()), pieces)
    stream, before, open_words = model.stream(decoder="ctc"), 0, set()
    for piece in cut(babble(4), 40):
        stream.push(piece)
        settled = list(stream.settled)
        assert stream.text == " ".join(word.text for word in stream.words)
        assert stream.words[: len(settled)] == settled
        assert len(settled) >= before
        before = len(settled)
        open_words.add(stream.open)
    result = stream.finish()
    assert result.words[: len(stream.settled)] == stream.settled
    assert len(result.words) - len(stream.settled) == 1
    assert len(open_words) > 3


def test_other_rates_and_types_of_samples_are_the_same_sound(tmp_path: Path) -> None:
    model, wave = transcriber(), babble(2, rate=48_000)
    audio.write(tmp_path / "a.wav", wave, 48_000)
    stored, rate = audio.read(tmp_path / "a.wav", None), 48_000
    whole = model.transcribe(tmp_path / "a.wav")
    assert whole.text
    assert said(model.transcribe(stored, rate)) == said(whole)
    assert said(model.transcribe(torch.from_numpy(stored), rate)) == said(whole)
    assert said(model.transcribe(np.stack([stored, stored], 1), rate)) == said(whole)
    assert said(model.transcribe(iter(cut(stored, 9)), rate)) == said(whole)
    stream = model.stream(rate=rate)
    for piece in cut((stored * 2**15).astype(np.int16), 9):
        stream.push(piece)
    assert said(stream.finish()) == said(whole)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
def test_blocks_say_what_the_whole_says(decoder: str, beam: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, wave = transcriber(), babble(7)
    whole = model.transcribe(wave, decoder=decoder, beam=beam, nbest=beam)
    monkeypatch.setattr(module, "WHOLE_SECONDS", 2.0)
    monkeypatch.setattr(module, "BLOCK_SECONDS", 1.0)
    blocks = model.transcribe(wave, decoder=decoder, beam=beam, nbest=beam)
    assert said(blocks) == said(whole)
    assert [h.tokens for h in blocks.hypotheses] == [h.tokens for h in whole.hypotheses]
    assert len(whole.hypotheses) == beam


def test_long_audio_is_taken_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the audio nor the encoder's output is held whole."""
    monkeypatch.setattr(module, "WHOLE_SECONDS", 1.0)
    monkeypatch.setattr(module, "BLOCK_SECONDS", 1.0)
    model, ahead = transcriber(), []
    taken, encoded = 0, 0
    inner = Transcriber.encode_blocks

    def pieces() -> Iterator[np.ndarray]:
        nonlocal taken
        for piece in np.split(babble(20), 40):
            taken += len(piece)
            yield piece

    def encode_blocks(self: Transcriber, pieces: Iterator[torch.Tensor], context: tuple[int, int]) -> Iterator[object]:
        nonlocal encoded
        for steps in inner(self, pieces, context):
            encoded += len(steps)
            ahead.append(taken / RATE - encoded * 0.08)
            yield steps

    monkeypatch.setattr(Transcriber, "encode_blocks", encode_blocks)
    assert model.transcribe(pieces()).seconds == 20
    assert max(ahead) < 3


def test_hotwords_change_what_is_said_the_same_way_everywhere() -> None:
    model, wave = transcriber(), babble(3)
    plain = model.transcribe(wave, decoder="ctc").text
    boosted = model.transcribe(wave, decoder="ctc", hotwords=["bad"], hotword_weight=6.0).text
    assert boosted.count("bad") > plain.count("bad")
    stream = model.stream(decoder="ctc", hotwords=["bad"], hotword_weight=6.0)
    assert stream.push(wave).finish().text == boosted


def test_a_model_of_full_context_hears_long_audio_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transcriber(**FULL)  # type: ignore[arg-type]
    wave = np.concatenate([babble(4, seed=1), np.zeros(RATE, np.float32), babble(4, seed=2)])
    monkeypatch.setattr(module, "WINDOW_SECONDS", 5.0)
    parts = [model.transcribe(part, decoder="ctc") for part in windows([wave], RATE, 5.0, 1280)]
    result = model.transcribe(wave, decoder="ctc")
    assert len(parts) == 2
    assert result.text == " ".join(part.text for part in parts)
    assert result.seconds == 9
    assert result.words[-1].start_s == pytest.approx(parts[1].words[-1].start_s + parts[0].seconds)
    with pytest.raises(InputError, match="full context: it cannot stream"):
        model.stream()
    with pytest.raises(InputError, match="no context of this model"):
        model.transcribe(wave, latency_ms=80)


def test_a_front_end_that_needs_the_utterance_does_not_stream() -> None:
    model = transcriber()
    model.network.front.normalize = "per_feature"
    assert model.latencies_ms == []
    assert model.transcribe(babble(2)).seconds == 2
    with pytest.raises(InputError, match="cannot stream"):
        model.stream()


def test_windows_are_the_recording_cut_in_its_pauses() -> None:
    wave = 0.1 + np.abs(babble(20))
    for pause in (4.2, 8.0, 12.4, 17.0):
        wave[round(pause * RATE) : round((pause + 0.4) * RATE)] = 1e-4
    pieces = list(windows(np.array_split(wave, 37), RATE, 5.0, 1280))
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    ends = np.cumsum([len(piece) for piece in pieces])[:-1]
    assert not (ends % 1280).any()
    assert np.abs(wave[ends]).max() < 1e-3
    assert max(map(len, pieces)) <= 5 * RATE


def test_words_do_not_run_across_windows() -> None:
    tokenizer = CharTokenizer(SYMBOLS)
    parts = [(0, Hypothesis([1, 2], [0, 3], [-0.5, -0.5], -1.0)), (50, Hypothesis([3], [4], [-1.0], -1.0))]
    found = joined(parts, tokenizer)
    assert tokenizer.decode(found.tokens) == "ab c"
    assert (found.steps[0], found.steps[-1], found.score) == (0, 54, -2.0)


def test_no_sound_is_no_text() -> None:
    model = transcriber()
    assert said(model.transcribe(np.zeros(0, np.float32))) == ("", [], 0.0)
    assert said(model.stream().finish()) == ("", [], 0.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"decoder": "attention"}, "this model has the decoders rnnt, ctc, got 'attention'"),
        ({"decoder": "attention", "beam": 2}, "this model has the decoders rnnt, ctc, got 'attention'"),
        ({"scorers": [object()]}, "a language model needs a beam search"),
        ({"beam": 0}, "a beam keeps from 1 to 1000 hypotheses, got 0"),
        ({"beam": 2000, "decoder": "ctc"}, "a beam keeps from 1 to 1000 hypotheses, got 2000"),
        ({"nbest": 0}, "a beam of 1 gives from 1 to 1 best hypotheses, got 0"),
        ({"nbest": 3}, "a beam of 1 gives from 1 to 1 best hypotheses, got 3"),
        ({"hotwords": ["zebra"]}, "cannot be boosted.*'zebra'"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        transcriber().transcribe(babble(0.5), **options)  # type: ignore[arg-type]


def test_a_stream_that_is_over_takes_no_more() -> None:
    stream = transcriber().stream()
    stream.push(babble(0.5)).finish()
    with pytest.raises(ValueError, match="was finished"):
        stream.push(babble(0.5))


def test_samples_of_a_program_come_in_many_kinds() -> None:
    model, wave = transcriber(), babble(1)
    expected = said(model.transcribe(wave))
    for same in (wave.astype(">f4"), wave[:, None], torch.from_numpy(wave)):
        assert said(model.transcribe(same)) == expected
    whole = (wave * 2**15).astype(np.int16)
    for same in (whole.astype(">i2"), torch.from_numpy(whole), whole.astype(np.float32) / 2**15):
        assert said(model.transcribe(same)) == said(model.transcribe(whole))
    half = torch.from_numpy(wave).bfloat16()
    assert said(model.transcribe(half)) == said(model.transcribe(half.float()))
    for rate in (0, -1):
        with pytest.raises(InputError, match=f"sample rate of {rate} Hz"):
            model.transcribe(wave, rate=rate)
        with pytest.raises(InputError, match=f"sample rate of {rate} Hz"):
            model.stream(rate=rate)


def test_bad_samples_are_refused_where_they_come_in() -> None:
    model = transcriber()
    for bad in (np.full(1600, np.nan), np.array([np.inf] * 10)):
        with pytest.raises(InputError, match="NaN or Inf"):
            model.transcribe(bad)
        with pytest.raises(InputError, match="NaN or Inf"):
            model.stream().push(bad)
    loud = 10 * babble(1)
    assert all(0 <= word.confidence <= 1 for word in model.transcribe(loud).words)
    for huge in (np.full(1600, 1e30), 32768 * babble(1), np.array([0.0, -2e6])):
        for given in (huge, iter([loud, huge])):
            with pytest.raises(InputError, match=r"(?i)the audio has samples as large as \S+, where 1 is full"):
                model.transcribe(given)
        with pytest.raises(InputError, match="The audio has samples as large as"):
            model.stream().push(huge)
