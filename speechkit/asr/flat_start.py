"""Flat start: at the beginning of training, frames are taught an equal share of the utterance per token."""

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask


def equal_alignment(widths: Tensor, tokens: Tensor, lengths: Tensor, steps: int, blank: int, margin: int = 2) -> Tensor:
    """The label of every encoder step if each token lasted in proportion to its width.

    Args:
        widths: (batch, tokens) how long each token is, in letters; 0 behind a row's end.
        tokens: (batch, tokens) int64.
        lengths: (batch,) valid steps.
        steps: steps of the result.
        blank: label of the `margin` steps at both ends, where nobody speaks yet or any more.

    Returns:
        (batch, steps) int64 labels; -100 behind a row's end and in rows without tokens.
    """
    ends = widths.double().cumsum(1)
    total = ends[:, -1:] if widths.shape[1] else ends.new_zeros(len(ends), 1)
    index = torch.arange(steps, device=tokens.device)
    inner = (lengths[:, None] - 2 * margin).clamp(min=1)
    place = (index - margin + 0.5).clamp(min=0) / inner * total
    label = torch.searchsorted(ends.contiguous(), place.contiguous(), right=True)
    label = tokens.gather(1, label.clamp(max=max(tokens.shape[1] - 1, 0))) if tokens.shape[1] else label
    label = torch.where((index < margin) | (index >= lengths[:, None] - margin), blank, label)
    return torch.where(valid_mask(lengths, steps) & (total > 0), label, -100)


def flat_start_loss(log_probs: Tensor, alignment: Tensor) -> Tensor:
    """Cross entropy of (batch, steps, vocab + 1) against an alignment (batch, steps): summed over steps, (batch,)."""
    return F.nll_loss(log_probs.transpose(1, 2), alignment, ignore_index=-100, reduction="none").sum(1)
