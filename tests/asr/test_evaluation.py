"""Scores and emission delays of recognisers, and their table and picture."""

import sys
from types import SimpleNamespace
from typing import Any, cast

import jiwer
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from speechkit.asr import evaluation, scores
from speechkit.asr.evaluation import Encoded, Score, score
from speechkit.asr.latency import Aligner, Delay, arrival, delays_ms, summary
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.streaming.stream import Stream
from speechkit.text import CharTokenizer, Tokenizer
from speechkit.token_list import ListTokenizer
from tests.asr import tiny
from tests.asr.toy import TOKENIZER, ctc, spoken

CHINESE = ListTokenizer(["<s>", "我", "们", "he@@", "llo", "去"])  # 我 has the id of the toy's "a"


def recognizer(contexts: list[list[int]] | None = None, **encoder: object) -> Transcriber:
    config = tiny.configuration(contexts or [[4, 1], [4, 0]], **encoder)
    return Transcriber(tiny.recognizer(config), CharTokenizer(tiny.SYMBOLS))


def sounds() -> list[Tensor]:
    return [torch.from_numpy(tiny.babble(seconds, seed=i)) for i, seconds in enumerate((1.3, 0.4, 2.1))]


def test_streams_and_batches_score_as_one_utterance_at_a_time() -> None:
    transcriber, waves = recognizer(), sounds()
    with torch.inference_mode():
        alone = [transcriber.transcribe(wave.numpy(), latency_ms=80, decoder="ctc").text for wave in waves]
    texts = ["a bad cab", "fed", "a hag had a bed"]
    found = score(transcriber, "s", waves, texts, contexts=[(4, 1)], decoders=["ctc"])
    assert [s.mode for s in found] == ["offline", "streaming"]
    for s in found:
        assert s.wer == pytest.approx(jiwer.wer(texts, alone))
        assert s.cer == pytest.approx(jiwer.cer(texts, alone))
        assert (s.words, s.latency_ms, s.seconds) == (9, 80, pytest.approx(sum(map(len, waves)) / 16000))


@pytest.mark.parametrize("context", [(4, 1), (4, 0)])
@pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
@torch.inference_mode()
def test_streams_emit_what_whole_utterances_do(context: tuple[int, int], decoder: str) -> None:
    transcriber, waves = recognizer(), sounds()
    offline, streamed = (
        Encoded(transcriber, waves, context, mode).greedy(decoder) for mode in ("offline", "streaming")
    )
    assert offline == streamed
    assert any(offline)


def test_every_decoder_context_mode_and_beam_has_its_line() -> None:
    found = score(recognizer(), "s", sounds(), ["a", "b", "c"], beam=2)
    assert [(s.decoder, s.beam, s.latency_ms, s.mode) for s in found] == [
        (decoder, beam, latency, mode)
        for decoder in ("rnnt", "ctc")
        for beam in (1, 2)
        for latency in (80, 0)
        for mode in (("offline", "streaming") if beam == 1 else ("offline",))
    ]


def test_full_context_is_scored_offline_only() -> None:
    found = score(recognizer([[-1, -1]]), "s", sounds(), ["a", "b", "c"], decoders=["ctc"])
    assert [(s.mode, s.latency_ms) for s in found] == [("offline", None)]


def test_a_terminal_shows_how_far_it_is_and_nothing_else_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(recognizer(), "my [split]", sounds()[:1], ["a"], ["offline"], ["ctc"])
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    score(recognizer(), "my [split]", sounds()[:1], ["a"], ["offline"], ["ctc"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "my [split]" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modes": ["sideways"]}, "modes are offline and streaming, got sideways"),
        ({"modes": []}, "nothing would be scored"),
        ({"modes": ["streaming"]}, "full context has the mode offline alone"),
        ({"decoders": ["foo"]}, "this model has the decoders rnnt, ctc, got 'foo'"),
        ({"beam": 0}, "from 1 to 1000 hypotheses, got 0"),
        ({"beam": 10**9}, "from 1 to 1000 hypotheses, got 1000000000"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_runs(
    options: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "Encoded", None)
    with pytest.raises(InputError, match=sentence):
        score(recognizer([[-1, -1]]), "s", sounds(), ["a", "b", "c"], **options)


@pytest.mark.parametrize("encoder", [{}, {"style": "regular"}])
@torch.inference_mode()
def test_tokens_arrive_when_the_stream_gives_them(encoder: dict[str, str]) -> None:
    transcriber, wave = recognizer(None, **encoder), sounds()[2]
    for context in transcriber.model.contexts:
        chain = transcriber.model.streaming(context)
        stream, given = Stream(chain), 0
        for fed, sample in enumerate(wave.split(80)):
            for piece in stream.push(sample[:, None]):
                for step in range(given, given + len(piece)):
                    now = (fed + 1) * 80
                    assert now - 80 < arrival(chain, step, len(wave)) <= now
                given += len(piece)
        rest = sum(map(len, stream.flush()))
        assert {arrival(chain, step, len(wave)) for step in range(given, given + rest)} <= {len(wave)}
        assert given > 0
        assert rest > 0


class Heard(nn.Module):
    """An encoder and a head whose log-probabilities are given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.ctc, self.logits, self.contexts, self.step_ms = ctc(), logits, [(4, 0), (-1, 3), (8, 1)], 80.0
        self.blank = self.ctc.blank
        self.seen: tuple[int, int] | None = None

    def latency_ms(self, context: tuple[int, int]) -> float:
        return 80.0 * context[1]

    def encode(self, wave: Tensor, lengths: Tensor, context: tuple[int, int]) -> tuple[Tensor, Tensor]:
        self.seen = context
        return self.logits[None], torch.tensor([len(self.logits)])


def aligner(*steps: str, tokenizer: Tokenizer = TOKENIZER) -> Aligner:
    model = Heard(spoken(*steps))
    return Aligner(cast("Transcriber", SimpleNamespace(model=model, tokenizer=tokenizer, rate=1000)))


def test_words_end_with_the_step_of_their_last_letter() -> None:
    found = aligner("_", "a", "_", "b", "b", "_", " ", "c", "_")
    assert found.word_ends(torch.zeros(720), "ab c") == pytest.approx([0.4, 0.64])
    assert cast("Heard", found.transcriber.model).seen == (-1, 3), "the alignment is of the longest context"
    assert aligner("a", "b").word_ends(torch.zeros(150), "ab") == [0.15], "no later than the end of the audio"


def test_characters_of_a_script_without_spaces_are_words() -> None:
    found = aligner("_", "a", "_", "b", "c", "_", "d", tokenizer=CHINESE)
    assert found.word_ends(torch.zeros(720), "我们 hello") == pytest.approx([0.16, 0.32, 0.56])
    assert found.word_ends(torch.zeros(720), "你们") is None, "no character of the tokenizer"


@pytest.mark.parametrize("text", ["abcd", "aa", "été", ""])
def test_texts_that_cannot_be_aligned_have_no_ends(text: str) -> None:
    assert aligner("a", "b").word_ends(torch.zeros(160), text) is None


def test_a_model_without_ctc_cannot_align() -> None:
    model = SimpleNamespace(ctc=None)
    with pytest.raises(InputError, match="emission delay needs a model with a CTC head"):
        Aligner(cast("Transcriber", SimpleNamespace(model=model)))


class Grid:
    """A stream of 100 samples a step, in chunks of two steps, that looks 10 samples ahead."""

    first, chunk, stride, lookahead = 111, 200, 100, 10


def test_only_recognised_words_have_a_delay() -> None:
    letters = [(TOKENIZER.pieces.index(letter), step) for step, letter in enumerate("ab x cd")]
    ends = [0.05, 0.2, 0.4]  # of ab, y, cd
    # b is step 1, given with the first 111 samples; d is step 6, due with the chunk up to 711; the audio ends at 650.
    found = delays_ms(Grid, letters, "ab y cd", ends, TOKENIZER, 650, 1000)  # type: ignore[arg-type]
    assert found == pytest.approx([111 - 50, 650 - 400])
    assert delays_ms(Grid, [], "ab", [0.1], TOKENIZER, 650, 1000) == []  # type: ignore[arg-type]


def test_recognised_characters_of_a_script_without_spaces_have_a_delay() -> None:
    emitted = [(CHINESE.encode(word)[-1], step) for step, word in ((0, "我"), (2, "去"), (6, "hello"))]
    found = delays_ms(Grid, emitted, "我们 hello", [0.05, 0.2, 0.4], CHINESE, 650, 1000)  # type: ignore[arg-type]
    assert found == pytest.approx([111 - 50])  # "llo" alone is no hello
    emitted.insert(2, (CHINESE.pieces.index("he@@"), 5))
    found = delays_ms(Grid, emitted, "我们 hello", [0.05, 0.2, 0.4], CHINESE, 650, 1000)  # type: ignore[arg-type]
    assert found == pytest.approx([111 - 50, 650 - 400])
    assert delays_ms(Grid, emitted, "我们 hello", [0.05, 0.4], CHINESE, 650, 1000) == []  # type: ignore[arg-type]
    assert delays_ms(Grid, emitted, "你", [0.05], CHINESE, 650, 1000) == []  # type: ignore[arg-type]


def test_delays_are_summed_up() -> None:
    assert summary([]) is None
    assert summary([100.0, 300.0, 200.0]) == Delay(200, 200, 280, 3)


def test_streams_alone_have_a_delay() -> None:
    transcriber, waves = recognizer([[6, 2], [6, 0]]), sounds()
    said = [transcriber.transcribe(wave.numpy(), latency_ms=160, decoder="ctc").text for wave in waves]
    found = score(
        transcriber, "s", waves, said, decoders=["ctc"], contexts=[(6, 2), (6, 0)],
        word_ends=[[0.0] * len(text.split()) for text in said],
    )  # fmt: skip
    delays = {s.latency_ms: s.delay for s in found if s.mode == "streaming"}
    assert all(s.delay is None for s in found if s.mode == "offline")
    longest = delays[160]
    assert longest is not None
    assert longest.words == sum(len(text.split()) for text in said)
    assert longest.p50 <= longest.p90


def line(mode: str, latency: float | None, wer: float, delay: Delay | None = None, beam: int = 1) -> Score:
    return Score("test", "ctc", mode, latency, wer, wer / 2, 10, 5.0, 0.1, beam, delay)


def test_the_table_pairs_offline_and_stream(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line("offline", 80, 0.1), line("streaming", 80, 0.2, Delay(90, 80, 120, 9)), line("offline", None, 0.05)]
    Console(width=120).print(scores.table([*rows, line("offline", 80, 0.07, beam=4)]))
    lines = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]
    assert "test 10 ctc 80 10.00/20.00 5.00/10.00 90/80/120 0.100" in lines
    assert "ctc full 5.00/- 2.50/- - 0.100" in lines  # the split and its words stand in its first line
    assert "ctc, beam 4 80 7.00/- 3.50/- - 0.100" in lines


def test_delays_that_were_not_measured_have_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=120).print(scores.table([line("offline", 80, 0.1)]))
    assert "delay" not in capsys.readouterr().out


def test_the_picture_is_a_png() -> None:
    image = scores.plot([line("offline", 80, 0.1), line("streaming", 80, 0.2), line("offline", None, 0.05)])
    assert image[:4] == b"\x89PNG"


def test_a_terminal_of_80_columns_shows_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    scored = ("offline", 1040, 0.4321, 0.1234, 54321, 36000.0, 0.0123)
    delay = Delay(1912, 1801, 2203, 50000)
    rows = [Score("test-of-a-long-name", "rnnt", *scored, beam=beam, delay=delay) for beam in (1, 8)]
    Console(width=80).print(scores.table(rows))
    out = capsys.readouterr().out
    assert "…" not in out
    assert "rnnt, beam 8 1040  43.21/-" in out
    assert "1912/1801/2203 0.012" in out
