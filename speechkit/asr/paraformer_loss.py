"""What Paraformer is trained with (Gao et al. 2022): glancing sampler (GLM), cross-entropy, MAE of lengths, MWER."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask


class Paths(NamedTuple):
    """Several ways to say each utterance."""

    tokens: Tensor  # (paths, batch, tokens) int64
    log_probs: Tensor  # (paths, batch), of all tokens of a path together


def with_end(targets: Tensor, lengths: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """(batch, tokens) and (batch,) with the token of the end after each row's last, 0 after it; and the new lengths."""
    longer = F.pad(targets, (0, 1)) * valid_mask(lengths, targets.shape[1] + 1)
    at = torch.arange(longer.shape[1], device=targets.device)
    return torch.where(at == lengths[:, None], end, longer), lengths + 1


def glancing_mask(hits: Tensor, lengths: Tensor, ratio: float) -> Tensor:
    """Where the targets' own embeddings take the place of what was heard: (batch, tokens) bool.

    Of each row ``floor(ratio * misses)`` positions, any of its own, hits among them: the sampler of the glancing
    language model (Qian et al. 2021) as Gao et al. 2022 have it, by FunASR's code.

    Args:
        hits: (batch, tokens) bool: the first pass found the target.
        lengths: (batch,) tokens, the end included.
        ratio: from 0 to 1.
    """
    valid = valid_mask(lengths, hits.shape[1])
    count = (ratio * (lengths - (hits & valid).sum(1))).long()
    order = torch.rand(hits.shape, device=hits.device).masked_fill(~valid, 2.0).argsort(1).argsort(1)
    return order < count[:, None]


def smoothed_cross_entropy(scores: Tensor, targets: Tensor, lengths: Tensor, smoothing: float = 0.1) -> Tensor:
    """Divergence of label-smoothed targets from (batch, tokens, vocabulary) scores, a mean over all tokens.

    A target has ``1 - smoothing``, every other token an equal share of the rest (Szegedy et al. 2016).
    """
    log_probs = scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float))
    size = scores.shape[-1]
    share = smoothing / max(1, size - 1)
    right = log_probs.gather(-1, targets[..., None])[..., 0]
    loss = -(1 - smoothing - share) * right - share * log_probs.sum(-1)
    entropy = sum(p * torch.tensor(p).log().item() * times for p, times in ((1 - smoothing, 1), (share, size - 1)) if p)
    valid = valid_mask(lengths, targets.shape[1])
    return ((loss + entropy) * valid).sum() / lengths.sum().clamp(min=1)


def length_error(total: Tensor, lengths: Tensor) -> Tensor:
    """Mean absolute error (MAE) of the sums of weights (batch,) from the numbers of tokens (batch,), per token.

    The quantity loss of Dong and Xu 2020.
    """
    return (total - lengths).abs().sum().float() / lengths.sum().clamp(min=1)


def sampled_paths(scores: Tensor, lengths: Tensor, count: int) -> Paths:
    """The most probable path of (batch, tokens, vocabulary) scores, and others.

    In those every position, by a fair coin, has its second best token (negative sampling of Gao et al. 2022: the best
    score is masked at random).
    """
    log_probs = scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float))
    best = log_probs.topk(min(2, scores.shape[-1]), -1)
    second = torch.rand(count, *lengths.shape, scores.shape[1], device=scores.device) < 0.5
    second[0] = False
    pick = (second & (best.indices.shape[-1] > 1)).long()
    tokens, each = (x.expand(count, *x.shape).gather(-1, pick[..., None])[..., 0] for x in (best.indices, best.values))
    return Paths(tokens, (each * valid_mask(lengths, scores.shape[1])).sum(-1))


def mwer_loss(paths: Paths, errors: Tensor) -> Tensor:
    """Minimum word error rate: expected errors of the paths beyond their mean, a mean over utterances.

    Prabhavalkar et al. 2018, equation 3.

    Args:
        paths: how an utterance may be said.
        errors: (paths, batch), of each.
    """
    weights = paths.log_probs.softmax(0)
    return (weights * (errors - errors.mean(0))).sum(0).mean()


def path_errors(
    paths: Paths, lengths: Tensor, targets: Sequence[Sequence[int]], kept: Callable[[Sequence[int]], Sequence[int]]
) -> Tensor:
    """Edit distance (paths, batch) of what `kept` leaves of every path from the targets, in tokens."""
    rows = [
        [
            float(Levenshtein.distance(kept(tokens[:count]), target))
            for tokens, count, target in zip(path, lengths.tolist(), targets, strict=True)
        ]
        for path in paths.tokens.tolist()
    ]
    return torch.tensor(rows, device=paths.log_probs.device, dtype=paths.log_probs.dtype)
