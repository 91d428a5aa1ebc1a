"""Integrate-and-fire is exact: any weights, any length, any batch, any chunks, and its gradient."""

import random

import pytest
import torch
from torch import Tensor

from speechkit.asr.cif import GRID, Cif
from tests.streaming.contract import CHECKS, Case


def loop(hidden: Tensor, weights: Tensor) -> list[Tensor]:
    """Step by step in double precision: every token that begins, the last one as far as it came."""
    tokens, weight, embed = [], 0.0, torch.zeros(hidden.shape[1], dtype=torch.double)
    for h, a in zip(hidden.double(), weights.tolist(), strict=True):
        left = round(a / GRID) * GRID
        while weight + left >= 1:
            part = 1 - weight
            tokens.append(embed + part * h)
            left, weight, embed = left - part, 0.0, torch.zeros_like(embed)
        weight, embed = weight + left, embed + left * h
    return [*tokens, embed]


def drawn(kind: int, steps: int) -> Tensor:
    """Weights as a sigmoid gives them, sparse ones, large ones, silence, and such as sum up to whole numbers."""
    weights = torch.rand(steps, dtype=torch.double)
    if kind == 1:
        return weights * (torch.rand(steps) < 0.2)
    if kind == 2:
        return 4 * weights
    if kind == 3:
        return torch.zeros(steps, dtype=torch.double)
    if kind == 4:
        return torch.randint(0, 5, (steps,)).double() / 4
    return weights


def test_thousands_of_cases_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    random.seed(0)
    cif = Cif(3)
    for case in range(1000):
        rows = [
            (torch.randn(n, 3, dtype=torch.double), drawn(random.randrange(5), n))
            for n in random.choices(range(1, 40), k=3)
        ]
        lengths = torch.tensor([len(h) for h, _ in rows])
        hidden = torch.nn.utils.rnn.pad_sequence([h for h, _ in rows], batch_first=True, padding_value=7.0)
        weights = torch.nn.utils.rnn.pad_sequence([a for _, a in rows], batch_first=True, padding_value=0.9)
        fired = cif(hidden, weights, lengths)
        for row, (h, a) in enumerate(rows):
            expected = loop(h, a)
            last = torch.round(a / GRID).sum() * GRID % 1
            expected = expected if last + cif.tail >= 1 else expected[:-1]
            assert int(fired.counts[row]) == len(expected), case
            found = fired.embeds[row, : len(expected)]
            torch.testing.assert_close(found, torch.stack([*expected, h[0]])[:-1], atol=1e-12, rtol=1e-12)
            assert not fired.embeds[row, len(expected) :].any()


def test_in_training_every_token_fires() -> None:
    torch.manual_seed(1)
    cif = Cif(2)
    hidden, weights = torch.ones(400, 60, 2), torch.rand(400, 60)
    lengths, targets = torch.randint(20, 61, (400,)), torch.randint(1, 30, (400,))
    fired = cif(hidden, weights, lengths, targets)
    assert torch.equal(fired.counts, targets)
    valid = torch.arange(fired.embeds.shape[1]) < targets[:, None]
    torch.testing.assert_close(fired.embeds[valid], torch.ones(int(targets.sum()), 2), atol=1e-5, rtol=0)
    inside = torch.arange(60) < lengths[:, None]
    torch.testing.assert_close(fired.total, (weights.double() * inside).sum(1))


def test_half_an_hour_loses_no_precision() -> None:
    torch.manual_seed(2)
    steps = 30_000
    hidden, weights = torch.randn(steps, 4), 0.3 * torch.rand(steps)
    fired = Cif(4)(hidden[None], weights[None], torch.tensor([steps]))
    expected = torch.stack(loop(hidden, weights.double()))[: int(fired.counts)]
    torch.testing.assert_close(fired.embeds[0].double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("targets", [None, [2, 3]])
def test_the_gradient_is_that_of_finite_differences(targets: list[int] | None) -> None:
    torch.manual_seed(3)
    cif = Cif(2)
    hidden = torch.randn(2, 7, 2, dtype=torch.double, requires_grad=True)
    weights = (0.2 + 0.5 * torch.rand(2, 7, dtype=torch.double)).requires_grad_()
    lengths = torch.tensor([7, 5])
    wanted = None if targets is None else torch.tensor(targets)
    fired = cif(hidden, weights, lengths, wanted)
    embeds = fired.embeds
    probe = torch.randn_like(embeds)
    gradients = torch.autograd.grad((embeds * probe).sum(), [hidden, weights])
    for x, gradient in zip([hidden, weights], gradients, strict=True):
        for place in [(0, 2), (1, 4), (1, 6)]:
            index = (*place, 1) if x.dim() == 3 else place
            moved = []
            for sign in (1, -1):
                other = x.detach().clone()
                other[index] += sign * 1e-4
                given = (other, weights.detach()) if x is hidden else (hidden.detach(), other)
                moved.append(float((cif(*given, lengths, wanted).embeds * probe).sum()))
            assert float(gradient[index]) == pytest.approx((moved[0] - moved[1]) / 2e-4, abs=1e-4)
    assert fired.counts.tolist() == (targets or fired.counts.tolist())


def test_silence_has_no_tokens() -> None:
    fired = Cif(3)(torch.randn(2, 5, 3), torch.zeros(2, 5), torch.tensor([5, 0]))
    assert fired.embeds.shape == (2, 0, 3)
    assert fired.counts.tolist() == [0, 0]


def test_a_token_fires_in_the_step_that_completes_it() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.25, 1.0, 0.0, 0.75]])
    assert Cif(1).fires(weights, 4).tolist() == [[1, 3, 5, 6]]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_chunks_are_the_whole(check, most: int) -> None:  # type: ignore[no-untyped-def]
    cif = Cif(3, most=most).double()

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        fired = cif(x[..., :-1], x[..., -1].clamp(0, most), lengths)
        return fired.embeds, fired.counts

    check(Case(cif, forward, dim=4, longest=60, multiples=(1, 4), dense=False, tolerance=1e-12))


@pytest.mark.parametrize("options", [{"tail": 1.0}, {"tail": -0.1}, {"most": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="tail must be from 0 to under 1 and most at least 1"):
        Cif(2, **options)  # type: ignore[arg-type]


def test_what_is_no_number_reaches_the_loss_and_has_no_tokens() -> None:
    """So that a training that diverges is told as such."""
    nothing, lengths = torch.full((1, 5), torch.nan), torch.tensor([5])
    fired = Cif(3)(torch.randn(1, 5, 3), nothing, lengths, torch.tensor([2]))
    assert fired.embeds.shape == (1, 2, 3)
    assert fired.total.isnan().all()
    assert Cif(3)(torch.randn(1, 5, 3), nothing, lengths).counts.tolist() == [0]
