"""The transducer loss against torchaudio's, and its slices against the whole."""

import pytest
import torch
import torchaudio

from speechkit.asr.joiner import Joiner
from speechkit.asr.transducer import label_scores, lattice_loss, transducer_loss


def _case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(3, 7, 5, 6)
    targets = torch.randint(0, 5, (3, 4))
    return logits, targets, torch.tensor([7, 5, 3]), torch.tensor([4, 2, 0])


def test_losses_and_gradients_equal_torchaudio() -> None:
    logits, targets, lengths, target_lengths = _case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = lattice_loss(*label_scores(ours, targets), lengths, target_lengths)
    reference = torchaudio.functional.rnnt_loss(
        theirs, targets.int(), lengths.int(), target_lengths.int(), blank=5, reduction="none"
    )
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_fastemit_scales_the_loss_and_only_the_label_arcs() -> None:
    logits, targets, lengths, target_lengths = _case()
    blank, label = label_scores(logits, targets)
    gradients = []
    for fastemit in (0.0, 0.5):
        b, a = blank.clone().requires_grad_(), label.clone().requires_grad_()
        loss = lattice_loss(b, a, lengths, target_lengths, fastemit)
        loss.sum().backward()
        assert a.grad is not None
        gradients.append((loss.detach(), b.grad, a.grad))
    torch.testing.assert_close(gradients[1][0], 1.5 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1])
    torch.testing.assert_close(gradients[1][2], 1.5 * gradients[0][2])


@pytest.mark.parametrize("max_logits", [1, 200, 1 << 20])
def test_slices_of_the_joint_equal_the_whole(max_logits: int) -> None:
    torch.manual_seed(1)
    joiner = Joiner(4, 3, 8, vocab_size=5, dropout=0.0).double()
    encoder = torch.randn(2, 6, 4, dtype=torch.double, requires_grad=True)
    predictor = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    targets, lengths, target_lengths = torch.randint(0, 5, (2, 3)), torch.tensor([6, 4]), torch.tensor([3, 1])
    loss = transducer_loss(joiner, encoder, predictor, targets, lengths, target_lengths, 0.01, max_logits)
    whole = lattice_loss(
        *label_scores(joiner(encoder[:, :, None], predictor[:, None]), targets), lengths, target_lengths, 0.01
    )
    torch.testing.assert_close(loss, whole)
    sliced = torch.autograd.grad(loss.sum(), [encoder, predictor, joiner.out.weight])
    full = torch.autograd.grad(whole.sum(), [encoder, predictor, joiner.out.weight])
    for a, b in zip(sliced, full, strict=True):
        torch.testing.assert_close(a, b)


def test_padding_changes_nothing() -> None:
    logits, targets, lengths, target_lengths = _case()
    blank, label = label_scores(logits, targets)
    whole = lattice_loss(blank, label, lengths, target_lengths)
    for row in range(3):
        t, u = int(lengths[row]), int(target_lengths[row])
        alone = lattice_loss(
            blank[row, :t, : u + 1][None], label[row, :t, :u][None], lengths[row, None], target_lengths[row, None]
        )
        torch.testing.assert_close(alone[0], whole[row])


def test_rows_without_steps_cost_nothing() -> None:
    logits, targets, _, target_lengths = _case()
    blank, label = (part.requires_grad_() for part in label_scores(logits, targets))
    loss = lattice_loss(blank, label, torch.tensor([7, 0, 3]), target_lengths)
    assert loss[1] == 0
    gradient = torch.autograd.grad(loss.sum(), blank)[0]
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()


def test_logits_up_to_a_multiple_change_neither_scores_nor_gradients() -> None:
    torch.manual_seed(2)
    joiner = Joiner(4, 3, 8, vocab_size=5, dropout=0.0).double()
    encoder, predictor = torch.randn(2, 6, 1, 4).double(), torch.randn(2, 1, 4, 3).double()
    projected = joiner.project_encoder(encoder), joiner.project_predictor(predictor)
    targets, results = torch.randint(0, 5, (2, 3)), []
    for multiple in (1, 8):
        logits = joiner.join(*projected, multiple)
        assert logits.shape[-1] == (6, 8)[multiple == 8]
        scores = label_scores(logits, targets, blank=5)
        weights = [joiner.out.weight, joiner.out.bias]
        gradients = torch.autograd.grad(torch.cat([s.flatten() for s in scores]).sum(), weights, retain_graph=True)
        results.append([*scores, *gradients])
    for plain, filled in zip(*results, strict=True):
        torch.testing.assert_close(plain, filled)
