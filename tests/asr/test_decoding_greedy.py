"""Greedy decoding: against plain loops, and the same for every cut and every batch."""

import pytest
import torch
from torch import Tensor

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.joiner import Joiner
from speechkit.asr.predictor import Predictor
from speechkit.streaming.state import Chunk, leaves, put, select
from speechkit.text import CharTokenizer

DIM, VOCAB = 6, 5
TOKENIZER = CharTokenizer(" abcd")


def _ctc(boosted: bool = False) -> CtcGreedy:
    torch.manual_seed(1)
    head = CtcHead(DIM, VOCAB).double()
    torch.nn.init.normal_(head.out.weight, std=2.0)
    return CtcGreedy(head, PhraseBooster(TOKENIZER, ["ab", "bad a"], 1.5) if boosted else None).eval()


def _rnnt(boosted: bool = False, max_symbols: int = 3) -> RnntGreedy:
    torch.manual_seed(2)
    predictor, joiner = Predictor(VOCAB, 7, layers=2).double(), Joiner(DIM, 7, 8, VOCAB).double()
    torch.nn.init.normal_(joiner.out.weight, std=1.5)
    torch.nn.init.normal_(predictor.embedding.weight[:VOCAB], std=2.0)
    booster = PhraseBooster(TOKENIZER, ["ab", "bad a"], 1.5) if boosted else None
    return RnntGreedy(predictor, joiner, max_symbols, booster).eval()


GREEDIES = [_ctc(), _ctc(True), _rnnt(), _rnnt(True)]
IDS = ["ctc", "ctc boosted", "rnnt", "rnnt boosted"]


def _row(chunk: Chunk, row: int) -> list[list[float]]:
    return chunk.values[row, : int(chunk.lengths[row])].tolist()


def _encoder(rows: int, steps: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, steps, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_ctc_is_the_collapsed_best_path() -> None:
    greedy, encoder = _ctc(), _encoder(3, 40)
    emitted = greedy(encoder, torch.tensor([40, 17, 0]))
    for row, length in enumerate([40, 17, 0]):
        labels = [VOCAB, *greedy.head(encoder)[row, :length].argmax(-1).tolist()]
        expected = [
            [b, i, greedy.head(encoder)[row, i, b].item()]
            for i, (a, b) in enumerate(zip(labels, labels[1:], strict=False))
            if b not in (a, VOCAB)
        ]
        assert _row(emitted, row) == expected
        assert not emitted.values[row, len(expected) :].any()


def test_rnnt_is_a_plain_loop_over_steps() -> None:
    greedy, encoder = _rnnt(), _encoder(2, 30)
    emitted = greedy(encoder, torch.tensor([30, 11]))
    capped = 0
    for row, length in enumerate([30, 11]):
        out, state = greedy.predictor.step(torch.tensor([VOCAB]), greedy.predictor.init_state(1))
        expected: list[list[float]] = []
        for step in range(length):
            for symbol in range(3):
                log_probs = greedy.joiner(encoder[row, step], out[0]).log_softmax(-1)
                token = int(log_probs.argmax())
                if token == VOCAB:
                    break
                expected.append([token, step, log_probs[token].item()])
                capped += symbol == 2
                out, state = greedy.predictor.step(torch.tensor([token]), state)
        assert [entry[:2] for entry in _row(emitted, row)] == [entry[:2] for entry in expected]
        torch.testing.assert_close(
            [entry[2] for entry in _row(emitted, row)], [entry[2] for entry in expected]
        )  # fmt: skip
    assert capped > 0  # the limit was met


@pytest.mark.parametrize("greedy", GREEDIES, ids=IDS)
@pytest.mark.parametrize("cut", [1, 3, 13])
def test_chunks_equal_the_whole(greedy: CtcGreedy | RnntGreedy, cut: int) -> None:
    encoder, lengths = _encoder(3, 26), torch.tensor([26, 9, 20])
    whole, state = greedy(encoder, lengths), greedy.init_state(3)
    found = [Hypothesis([], [], [], 0.0)] * 3
    for start in range(0, 26, cut):
        piece = encoder[:, start : start + cut]
        count = (lengths - start).clamp(0, piece.shape[1])
        y, state = greedy.step(Chunk(piece, count, count + start >= lengths), state)  # type: ignore[arg-type]
        found = [h.extended(y.values[i, : int(y.lengths[i])]) for i, h in enumerate(found)]
    for row, hypothesis in enumerate(found):
        expected = Hypothesis([], [], [], 0.0).extended(whole.values[row, : int(whole.lengths[row])])
        assert (hypothesis.tokens, hypothesis.steps) == (expected.tokens, expected.steps)
        torch.testing.assert_close(hypothesis.log_probs, expected.log_probs)
        assert hypothesis.score == pytest.approx(expected.score)


@pytest.mark.parametrize("greedy", GREEDIES, ids=IDS)
def test_rows_in_different_phases_do_not_touch_each_other(greedy: CtcGreedy | RnntGreedy) -> None:
    encoder = _encoder(2, 12)
    _, state = greedy.step(Chunk(encoder, torch.tensor([12, 5]), torch.tensor([False, False])), greedy.init_state(2))  # type: ignore[arg-type]
    state = put(state, [0], greedy.init_state(1))
    idle, after = greedy.step(Chunk(encoder, torch.tensor([7, 0]), torch.tensor([False, False])), state)  # type: ignore[arg-type]
    assert int(idle.lengths[1]) == 0
    for old, new in zip(leaves(select(state, [1])), leaves(select(after, [1])), strict=True):
        assert torch.equal(old, new)
    alone = greedy(encoder[:1, :7], torch.tensor([7]))
    torch.testing.assert_close(idle.values[0, : int(idle.lengths[0])], alone.values[0, : int(alone.lengths[0])])


@pytest.mark.parametrize("greedy", GREEDIES[:2], ids=IDS[:2])
def test_without_phrases_that_matter_boosting_changes_nothing(greedy: CtcGreedy) -> None:
    encoder, lengths = _encoder(4, 30, seed=3), torch.full((4,), 30)
    zero = PhraseBooster(TOKENIZER, ["ab", "dad"], 0.0)
    assert torch.equal(CtcGreedy(greedy.head, zero)(encoder, lengths).values, _ctc()(encoder, lengths).values)
    plain = _rnnt()
    assert torch.equal(
        RnntGreedy(plain.predictor, plain.joiner, 3, zero)(encoder, lengths).values, plain(encoder, lengths).values
    )


def test_half_precision_keeps_token_and_step_exact() -> None:
    head = CtcHead(DIM, 3000).half()
    emitted = CtcGreedy(head)(torch.randn(1, 3000, DIM).half(), torch.tensor([3000]))
    assert emitted.values.dtype == torch.float
    assert emitted.values[0, : int(emitted.lengths[0]), 1].max() > 2900
