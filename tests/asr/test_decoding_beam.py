"""Beam searches: against exhaustive sums, against greedy, and the same for every cut."""

from collections.abc import Callable
from itertools import product
from math import inf

import pytest
import torch
from torch import Tensor

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.ctc_beam import CtcBeam
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.rnnt_beam import RnntBeam
from speechkit.asr.joiner import Joiner
from speechkit.asr.predictor import Predictor

DIM = 4
Sums = dict[tuple[int, ...], float]


def _head(vocab: int, seed: int) -> CtcHead:
    torch.manual_seed(seed)
    head = CtcHead(DIM, vocab).double()
    torch.nn.init.normal_(head.out.weight)
    return head


def _transducer(vocab: int, seed: int) -> tuple[Predictor, Joiner]:
    torch.manual_seed(seed)
    predictor, joiner = Predictor(vocab, 5).double().eval(), Joiner(DIM, 5, 6, vocab).double().eval()
    torch.nn.init.normal_(joiner.out.weight)
    return predictor, joiner


def _encoder(steps: int, seed: int) -> Tensor:
    return torch.randn(steps, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def _add(sums: Sums, tokens: tuple[int, ...], value: float) -> None:
    sums[tokens] = torch.logaddexp(torch.tensor(sums.get(tokens, -inf)).double(), torch.tensor(value).double()).item()


@torch.no_grad()
def _ctc_sums(head: CtcHead, encoder: Tensor) -> Sums:
    sums: Sums = {}
    log_probs = head(encoder[None])[0]
    for path in product(range(head.blank + 1), repeat=len(encoder)):
        pairs = zip((head.blank, *path), path, strict=False)
        tokens = tuple(b for a, b in pairs if b not in (a, head.blank))
        _add(sums, tokens, sum(log_probs[t, label].item() for t, label in enumerate(path)))
    return sums


@torch.no_grad()
def _rnnt_sums(predictor: Predictor, joiner: Joiner, encoder: Tensor, per_step: int) -> Sums:
    sums: Sums = {}

    def walk(step: int, emitted: int, tokens: tuple[int, ...], value: float) -> None:
        if step == len(encoder):
            return _add(sums, tokens, value)
        log_probs = joiner(encoder[step], predictor(torch.tensor([tokens]).long())[0, -1]).log_softmax(-1).tolist()
        walk(step + 1, 0, tokens, value + log_probs[predictor.blank])
        if emitted < per_step:
            for token in range(predictor.blank):
                walk(step, emitted + 1, (*tokens, token), value + log_probs[token])
        return None

    walk(0, 0, (), 0.0)
    return sums


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_ctc_beam_is_exhaustive(seed: int) -> None:
    head, encoder = _head(3, seed), _encoder(4, seed)
    found = CtcBeam(head, beam=500, threshold=1e9)(encoder, count=500)
    sums = _ctc_sums(head, encoder)
    assert {tuple(h.tokens): pytest.approx(h.score) for h in found} == sums
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_rnnt_beam_is_exhaustive(seed: int) -> None:
    (predictor, joiner), encoder = _transducer(2, seed), _encoder(3, seed)
    found = RnntBeam(predictor, joiner, beam=500, expansions=2, gamma=1e9)(encoder, count=500)
    sums = _rnnt_sums(predictor, joiner, encoder, 2)
    assert {tuple(h.tokens): pytest.approx(h.score) for h in found} == sums


def test_a_beam_finds_what_greedy_misses() -> None:
    better = {"ctc": 0, "rnnt": 0}
    for seed in range(6):
        head, encoder = _head(2, seed), _encoder(3, seed)
        predictor, joiner = _transducer(2, seed)
        whole = torch.tensor([len(encoder)])
        cases = (
            ("ctc", CtcBeam(head, beam=4), CtcGreedy(head), _ctc_sums(head, encoder)),
            ("rnnt", RnntBeam(predictor, joiner, beam=4, expansions=2, gamma=5.0), RnntGreedy(predictor, joiner, 2),
             _rnnt_sums(predictor, joiner, encoder, 2)),
        )  # fmt: skip
        for name, beam, greedy, sums in cases:
            emitted = greedy(encoder[None], whole)
            said = tuple(int(t) for t in emitted.values[0, : int(emitted.lengths[0]), 0])
            best = tuple(beam(encoder)[0].tokens)
            assert sums[best] >= sums[said] - 1e-9
            better[name] += sums[best] > sums[said] + 1e-9
    assert min(better.values()) > 0


BEAMS: dict[str, Callable[[], CtcBeam | RnntBeam]] = {
    "ctc": lambda: CtcBeam(_head(6, 0), beam=5),
    "rnnt": lambda: RnntBeam(*_transducer(6, 0), beam=4),
}


@pytest.mark.parametrize("kind", list(BEAMS))
@pytest.mark.parametrize("cut", [1, 4])
def test_chunks_equal_the_whole(kind: str, cut: int) -> None:
    search, encoder = BEAMS[kind](), _encoder(14, 1)
    state = search.init_state()
    for piece in encoder.split(cut):
        state = search.hear(piece, state)  # type: ignore[arg-type]
    whole, pieces = search(encoder, 4), search.nbest(state, 4)  # type: ignore[arg-type]
    assert [(h.tokens, h.steps) for h in pieces] == [(h.tokens, h.steps) for h in whole]
    assert [h.score for h in pieces] == pytest.approx([h.score for h in whole])


@pytest.mark.parametrize("kind", list(BEAMS))
def test_a_hypothesis_is_in_order_and_within_the_audio(kind: str) -> None:
    for hypothesis in BEAMS[kind]()(_encoder(14, 2), 4):
        assert len(hypothesis.tokens) == len(hypothesis.steps) == len(hypothesis.log_probs)
        assert hypothesis.steps == sorted(hypothesis.steps)
        assert all(0 <= step < 14 for step in hypothesis.steps)
        assert all(value <= 0 for value in hypothesis.log_probs)


@pytest.mark.parametrize("kind", list(BEAMS))
def test_nothing_in_gives_an_empty_hypothesis(kind: str) -> None:
    search = BEAMS[kind]()
    assert [h.tokens for h in search(_encoder(0, 0))] == [[]]
