"""The transducer loss with FastEmit, in memory that does not grow with the whole lattice times the vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from speechkit.asr.joiner import Joiner

MAX_LOGITS = 1 << 27  # logits that one piece of the joint may hold: 512 MB in fp32


def transducer_loss(
    joiner: Joiner,
    encoder: Tensor,
    predictor: Tensor,
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    fastemit: float = 0.0,
    max_logits: int | None = None,
) -> Tensor:
    """Loss of each utterance (Graves 2012, equation 17; FastEmit: Yu et al. 2021, equation 9).

    The joint runs over slices of time and is recomputed in the backward pass where there is more than one slice; only
    the log-probabilities of blank and of the next label are kept of it.

    Args:
        joiner: the joint network.
        encoder: (batch, steps, encoder_dim).
        predictor: (batch, tokens + 1, predictor_dim).
        targets: (batch, tokens) int64, any value behind a row's end.
        lengths: (batch,) valid steps.
        target_lengths: (batch,) tokens.
        fastemit: weight of FastEmit; the value is the plain loss times ``1 + fastemit``.
        max_logits: numbers that one slice of the joint may hold, `MAX_LOGITS` where none is given.

    Returns:
        (batch,) float32 (float64 for float64 input) losses; zero where a row has no steps.
    """
    enc, pred = joiner.project_encoder(encoder), joiner.project_predictor(predictor)
    batch, steps, _ = enc.shape
    cells = batch * pred.shape[1] * joiner.out.out_features
    size = max(1, min(steps, (max_logits or MAX_LOGITS) // max(cells, 1)))
    blanks, labels = [], []
    for piece in enc.split(size, dim=1):
        if size < steps and torch.is_grad_enabled():
            blank, label = checkpoint(_scores, joiner, piece, pred, targets, use_reentrant=False)
        else:
            blank, label = _scores(joiner, piece, pred, targets)
        blanks.append(blank)
        labels.append(label)
    return lattice_loss(torch.cat(blanks, 1), torch.cat(labels, 1), lengths, target_lengths, fastemit)


def _scores(joiner: Joiner, encoder: Tensor, predictor: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of blank (batch, steps, tokens + 1) and of the next label (batch, steps, tokens)."""
    logits = joiner.join(encoder[:, :, None], predictor[:, None], multiple=8 if encoder.is_cuda else 1)
    blank = joiner.out.out_features - 1
    return label_scores(logits if logits.dtype == torch.double else logits.float(), targets, blank)


def label_scores(logits: Tensor, targets: Tensor, blank: int = -1) -> tuple[Tensor, Tensor]:
    """(batch, steps, tokens + 1, vocab + 1) logits -> what the lattice needs of their log-softmax."""
    index = targets.clamp(0, logits.shape[-1] - 1)[:, None, :, None].expand(-1, logits.shape[1], -1, -1)
    return _LabelScores.apply(logits, index, blank)


class _LabelScores(torch.autograd.Function):
    """Two columns of a log-softmax, whose gradient is written once, not once for each of its parts."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, blank: int) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(-1)
        ctx.save_for_backward(logits, total, index)
        ctx.blank = blank
        return logits[..., blank] - total, logits[:, :, :-1].gather(-1, index)[..., 0] - total[:, :, :-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (blank, label), (logits, total, index) = grads, ctx.saved_tensors
        grad = (logits - total[..., None]).exp_()
        grad *= -(blank + F.pad(label, (0, 1)))[..., None]
        grad[..., ctx.blank] += blank
        grad[:, :, :-1].scatter_add_(-1, index, label[..., None])
        return grad, None, None


def lattice_loss(
    blank: Tensor, label: Tensor, lengths: Tensor, target_lengths: Tensor, fastemit: float = 0.0
) -> Tensor:
    """Loss from log-probabilities of blank (batch, steps, tokens + 1) and label (batch, steps, tokens): (batch,)."""
    return _Lattice.apply(blank, label, lengths, target_lengths, fastemit)


class _Lattice(torch.autograd.Function):
    """Forward-backward over the lattice in double precision; the gradient is the arcs' posterior."""

    @staticmethod
    def forward(
        ctx: Any, blank: Tensor, label: Tensor, lengths: Tensor, target_lengths: Tensor, fastemit: float
    ) -> Tensor:
        inside = (torch.arange(label.shape[2], device=label.device) < target_lengths[:, None])[:, None]
        arcs = torch.where(inside, label.double(), 0.0)
        stay = blank.double()
        alpha, beta = _forward_backward(stay, arcs, lengths, target_lengths)
        total = torch.where(lengths > 0, beta[:, 0, 0], 0.0)
        if blank.requires_grad or label.requires_grad:
            after = _after_blank(beta, lengths, target_lengths)
            base = alpha - total[:, None, None]
            steps = torch.arange(blank.shape[1], device=blank.device) < lengths[:, None]
            ctx.save_for_backward(
                torch.where(steps[..., None], -(base + stay + after).exp(), 0.0).to(blank.dtype),
                torch.where(
                    steps[..., None] & inside, -(1 + fastemit) * (base[..., :-1] + arcs + beta[..., 1:]).exp(), 0.0
                ).to(label.dtype),
            )
        return (-(1 + fastemit) * total).to(blank.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        blank, label = ctx.saved_tensors
        scale = grads[0][:, None, None]
        return blank * scale, label * scale, None, None, None


def _forward_backward(blank: Tensor, label: Tensor, lengths: Tensor, target_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of reaching each cell, and of the end from it: (batch, steps, tokens + 1) each.

    Backwards, every row's lattice turned round is one that begins in its first cell: both go through one loop.
    """
    label = F.pad(label, (0, 1))
    step = torch.arange(blank.shape[1], device=blank.device)
    cell = torch.arange(blank.shape[2], device=blank.device)
    turned_step, turned_cell = lengths[:, None] - 1 - step, target_lengths[:, None] - cell

    def turn(x: Tensor) -> Tensor:
        x = x.gather(1, turned_step.clamp(min=0)[..., None].expand_as(x))
        return x.gather(2, turned_cell.clamp(min=0)[:, None].expand_as(x))

    stay = torch.cat([F.pad(blank[:, :-1], (0, 0, 1, 0)), turn(blank)])
    reached = _reach(stay, torch.cat([F.pad(label[..., :-1], (1, 0)), turn(label)]))
    alpha, beta = reached.chunk(2)
    within = (turned_step >= 0)[..., None] & (turned_cell >= 0)[:, None]
    return alpha, torch.where(within, turn(beta), -torch.inf)


def _reach(stay: Tensor, emit: Tensor) -> Tensor:
    """Log-probabilities of reaching the cells, by `stay` from the step before or by `emit` from the cell before.

    Along a cell's steps these are cumulative sums, so the loop is over the tokens, which are fewer than the steps.
    """
    stay, emit = stay.permute(2, 0, 1).cumsum(-1), emit.permute(2, 0, 1)
    enter = emit - stay
    reached = [stay[0]]
    for u in range(1, len(stay)):
        reached.append((reached[-1] + enter[u]).logcumsumexp(-1) + stay[u])
    return torch.stack(reached, -1)


def _after_blank(beta: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """beta of the cell that a blank leads to: (batch, steps, tokens + 1)."""
    ahead = F.pad(beta[:, 1:], (0, 0, 0, 1), value=-torch.inf)
    final = torch.arange(beta.shape[1], device=beta.device) == (lengths - 1)[:, None]
    return torch.where(final[..., None], _end(beta.shape[2], target_lengths)[:, None], ahead)


def _end(cells: int, target_lengths: Tensor) -> Tensor:
    """(batch, cells): zero at each row's last token, minus infinity elsewhere."""
    at_end = torch.arange(cells, device=target_lengths.device) == target_lengths[:, None]
    return torch.where(at_end, 0.0, -torch.inf).double()
