"""What Paraformer is trained with: each part is its definition, and together they teach."""

import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.asr.paraformer_loss import (
    Paths,
    glancing_mask,
    length_error,
    mwer_loss,
    path_errors,
    sampled_paths,
    smoothed_cross_entropy,
    with_end,
)  # fmt: skip


def test_the_end_follows_the_last_token() -> None:
    targets, lengths = with_end(torch.tensor([[5, 6, 7], [5, 9, 9], [9, 9, 9]]), torch.tensor([3, 1, 0]), 8)
    assert targets.tolist() == [[5, 6, 7, 8], [5, 8, 0, 0], [8, 0, 0, 0]]
    assert lengths.tolist() == [4, 2, 1]


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.75, 1.0])
def test_as_many_targets_are_shown_as_misses_and_ratio_say(ratio: float) -> None:
    torch.manual_seed(0)
    hits, lengths = torch.rand(200, 20) < 0.4, torch.randint(1, 21, (200,))
    given = glancing_mask(hits, lengths, ratio)
    valid = torch.arange(20) < lengths[:, None]
    misses = lengths - (hits & valid).sum(1)
    assert given.sum(1).tolist() == [math.floor(ratio * n) for n in misses.tolist()]
    assert not (given & ~valid).any()
    if ratio == 0.75:
        assert (given & hits).any(), "hits are shown as misses are"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_divergence(smoothing: float) -> None:
    torch.manual_seed(1)
    scores, targets, lengths = torch.randn(3, 5, 7), torch.randint(7, (3, 5)), torch.tensor([5, 2, 3])
    q = torch.full((3, 5, 7), smoothing / 6).scatter(-1, targets[..., None], 1 - smoothing)
    each = F.kl_div(scores.log_softmax(-1), q, reduction="none").sum(-1)
    expected = sum(each[row, : lengths[row]].sum() for row in range(3)) / lengths.sum()
    torch.testing.assert_close(smoothed_cross_entropy(scores, targets, lengths, smoothing), expected)


def test_length_error_is_per_token() -> None:
    assert float(length_error(torch.tensor([3.5, 8.0]), torch.tensor([3, 10]))) == pytest.approx(2.5 / 13)


def test_paths_are_the_best_and_others_of_first_and_second_choices() -> None:
    torch.manual_seed(2)
    scores, lengths = torch.randn(3, 6, 5), torch.tensor([6, 2, 4])
    paths = sampled_paths(scores, lengths, 50)
    ranks = (scores.argsort(-1, descending=True)[None] == paths.tokens[..., None]).int().argmax(-1)
    assert not ranks[0].any(), "the first path is the greedy one"
    assert set(ranks[1:].flatten().tolist()) == {0, 1}
    assert 0.4 < ranks[1:].float().mean() < 0.6
    each = scores.log_softmax(-1)[None].expand(50, -1, -1, -1).gather(-1, paths.tokens[..., None])[..., 0]
    expected = torch.stack([each[:, row, : int(lengths[row])].sum(1) for row in range(3)], dim=1)
    torch.testing.assert_close(paths.log_probs, expected)


def test_errors_are_edits_of_what_is_text() -> None:
    paths = Paths(torch.tensor([[[1, 2, 3, 9]], [[1, 9, 3, 2]], [[1, 4, 2, 3]]]), torch.zeros(3, 1))
    found = path_errors(paths, torch.tensor([4]), [[1, 2, 3]], lambda tokens: [t for t in tokens if t != 9])
    assert found.tolist() == [[0.0], [2.0], [1.0]], "an insertion is one edit, not all that follows it"


def test_word_errors_favour_the_better_path() -> None:
    log_probs = torch.tensor([[-1.0], [-1.2], [-3.0]], requires_grad=True)
    paths = Paths(torch.zeros(3, 1, 1, dtype=torch.int64), log_probs)
    errors = torch.tensor([[2.0], [0.0], [4.0]])
    loss = mwer_loss(paths, errors)
    weights = log_probs.detach().softmax(0)
    assert float(loss.detach()) == pytest.approx(float((weights * (errors - 2.0)).sum()))
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient[1] < 0 < gradient[0], "descending makes the right path more probable"


def test_word_errors_lower_what_they_measure() -> None:
    """A score table learns of errors alone, from paths that are drawn anew."""
    torch.manual_seed(3)
    random.seed(3)
    target, lengths = [0, 1, 2, 3, 4], torch.tensor([5])
    scores = torch.eye(5)[None] * 0.5
    scores[0, :, 0] += 0.6  # the first choice is token 0 everywhere

    def wrong(x: Tensor) -> int:
        return int((x.argmax(-1)[0] != torch.tensor(target)).sum())

    before = wrong(scores)
    for _ in range(60):
        paths = sampled_paths(scores.requires_grad_(), lengths, 8)
        loss = mwer_loss(paths, path_errors(paths, lengths, [target], list))
        (gradient,) = torch.autograd.grad(loss, [scores])
        scores = (scores - 0.5 * gradient).detach()
    assert wrong(scores) == 0 < before
