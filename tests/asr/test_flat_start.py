"""Equal alignments for the beginning of CTC training."""

import torch

from speechkit.asr.flat_start import equal_alignment, flat_start_loss


def test_tokens_share_the_steps_by_their_width() -> None:
    widths, tokens = torch.tensor([[1, 3, 0], [2, 1, 1]]), torch.tensor([[5, 6, 0], [7, 8, 9]])
    labels = equal_alignment(widths, tokens, torch.tensor([8, 12]), 12, blank=10)
    assert labels[0].tolist() == [10, 10, 5, 6, 6, 6, 10, 10, -100, -100, -100, -100]
    assert labels[1].tolist() == [10, 10, 7, 7, 7, 7, 8, 8, 9, 9, 10, 10]


def test_rows_too_short_or_without_tokens_stay_finite() -> None:
    widths, tokens = torch.tensor([[4, 2], [0, 0]]), torch.tensor([[1, 2], [0, 0]])
    labels = equal_alignment(widths, tokens, torch.tensor([3, 5]), 5, blank=3)
    assert labels[0].tolist() == [3, 3, 3, -100, -100]
    assert labels[1].tolist() == [-100] * 5
    assert equal_alignment(widths[:, :0], tokens[:, :0], torch.tensor([3, 5]), 5, blank=3).eq(-100).all()
    log_probs = torch.randn(2, 5, 4).log_softmax(-1)
    assert torch.isfinite(flat_start_loss(log_probs, labels)).all()
    assert flat_start_loss(log_probs, labels)[1] == 0
