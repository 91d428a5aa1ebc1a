"""The CTC head and its loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CtcHead(nn.Module):
    """Encoder steps to log-probabilities over the vocabulary and the blank, which is last (Graves et al. 2006)."""

    def __init__(self, encoder_dim: int, vocab_size: int) -> None:
        super().__init__()
        if min(encoder_dim, vocab_size) < 1:
            raise ValueError(f"encoder_dim and vocab_size must be at least 1, got {(encoder_dim, vocab_size)}")
        self.blank = vocab_size
        self.out = nn.Linear(encoder_dim, vocab_size + 1)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, encoder: Tensor) -> Tensor:
        """(batch, steps, encoder_dim) -> (batch, steps, vocab_size + 1) log-probabilities."""
        logits = self.out(encoder)
        return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float))


def ctc_loss(log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """Each utterance's loss: (batch,).

    Args:
        log_probs: (batch, steps, vocab_size + 1).
        targets: (batch, tokens).
        lengths: (batch,) valid steps.
        target_lengths: (batch,) tokens.

    An utterance with fewer steps than its target needs has no alignment and counts as zero: `RecognitionJob.misfits`
    finds those before training.
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1), targets, lengths, target_lengths, blank, reduction="none", zero_infinity=True
    )
