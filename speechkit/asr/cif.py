"""Continuous integrate-and-fire (Dong and Xu 2020): a weighted sum of encoder steps for every token."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk

GRID = 2.0**-30  # weights are multiples of it: their sums are exact in double precision, up to eight million tokens


class Fired(NamedTuple):
    """What was integrated."""

    embeds: Tensor  # (batch, tokens, dim), zero after each row's own
    counts: Tensor  # (batch,) int64, tokens
    total: Tensor  # (batch,) double, sum of the weights as they were given
    weights: Tensor  # (batch, steps) double, as they were integrated


class CifState(NamedTuple):
    """The token that has begun."""

    embed: Tensor  # (batch, dim), its sum so far
    weight: Tensor  # (batch,) double, of it so far, under 1


class Cif(nn.Module):
    """Step ``t`` covers ``[S(t - 1), S(t)]``, S being the sum of the weights, and token ``j`` covers ``[j, j + 1]``.

    A token's embedding is the sum of the steps, each weighted by what both cover: for any weights, over 1 too, so that
    every token is there, and without differences of long sums. Sums are exact, hence a row is the same in any batch
    and in any chunks. Linear in time and memory.

    As a streaming module it takes the weight as a step's last number, and has room for `most` tokens a step and the
    one at the end.

    Args:
        dim: of a step.
        tail: added to the weights at the end of what is heard, so that a last token of at least ``1 - tail`` fires
            (Gao et al. 2022; FunASR's `tail_threshold`).
        most: the largest weight of a stream's step, a whole number.

    Raises:
        ValueError: `tail` is not from 0 to under 1, or `most` is under 1.
    """

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, dim: int, tail: float = 0.45, most: int = 1) -> None:
        super().__init__()
        if not 0 <= tail < 1 or most < 1:
            raise ValueError(f"tail must be from 0 to under 1 and most at least 1, got {tail} and {most}")
        self.dim, self.most = dim, most
        self.tail = round(tail / GRID) * GRID
        self.register_buffer("like", torch.zeros(0), persistent=False)  # where the module is, and its type
        self.like: Tensor

    def forward(self, hidden: Tensor, weights: Tensor, lengths: Tensor, target_lengths: Tensor | None = None) -> Fired:
        """(batch, steps, dim), (batch, steps) not negative, (batch,) valid steps.

        With the targets' lengths weights are scaled so that their sum is that: every row has as many tokens (Dong and
        Xu 2020, section 3.2). Without them tokens are those that are complete, the tail counted.
        """
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float))
        weights = weights.double() * valid_mask(lengths, weights.shape[1])
        total = weights.sum(1)
        if target_lengths is None:
            weights = _on_grid(weights)
            counts = (weights.sum(1).nan_to_num() + self.tail).floor().long()  # a diverged model says nothing
        else:
            counts = target_lengths
            weights = _on_grid(weights * (counts / total.clamp(min=GRID))[:, None])
        begun = torch.zeros_like(total)
        if torch.compiler.is_exporting():  # a graph has a token's room where there is none, too
            room: Any = counts.max().clamp(min=1).item()
            torch._check(room >= 1)
            torch._check(room <= hidden.shape[1] + 1)
            embeds = _shared(hidden, weights, begun, room)
        else:
            room = int(counts.max()) if len(counts) else 0
            most = int(weights.detach().nan_to_num().max().ceil()) if weights.numel() else 0
            embeds = _integrated(hidden, weights, begun, room, most)[:, :room]
        return Fired(embeds * valid_mask(counts, room)[..., None], counts, total, weights)

    def padded(self, hidden: Tensor, weights: Tensor, lengths: Tensor) -> Fired:
        """As `forward`, but the tail is of the step after each row's last one, in a batch padding: as FunASR."""
        hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], dim=1)
        at = torch.arange(hidden.shape[1], device=hidden.device)
        longer = torch.cat([weights, torch.zeros_like(weights[:, :1])], dim=1)
        longer = torch.where(at == lengths[:, None], self.tail, longer.double())
        return Cif(self.dim, 0.0).to(hidden)(hidden, longer, lengths + 1)

    def fires(self, weights: Tensor, tokens: int, begun: Tensor | None = None) -> Tensor:
        """(batch, steps) -> (batch, tokens) int64: the step in which each token is complete; `steps` where none is.

        `begun` (batch,) is the weight that the first token has before the first step.
        """
        ends = _on_grid(weights.detach().double()).cumsum(1)
        ends = ends if begun is None else ends + begun[:, None]
        wanted = torch.arange(1, tokens + 1, device=ends.device, dtype=ends.dtype)
        return (ends[:, None] < wanted[:, None]).sum(2)

    def init_state(self, batch: int) -> CifState:
        """State of `batch` streams that have not begun."""
        weight = torch.zeros(batch, dtype=torch.float64, device=self.like.device)
        return CifState(self.like.new_zeros(batch, self.dim), weight)

    def step(self, x: Chunk, state: CifState) -> tuple[Chunk, CifState]:
        """(batch, steps, dim + 1) -> (batch, steps * most + 1, dim)."""
        hidden, weights = x.values[..., :-1], x.values[..., -1].double()
        steps = x.values.shape[1]
        room = steps * self.most + 1
        weights = _on_grid((weights * valid_mask(x.lengths, steps)).clamp(0, self.most))
        if torch.compiler.is_exporting():
            embeds = _shared(hidden, weights, state.weight, room + 1)
        else:
            embeds = _integrated(hidden, weights, state.weight, room, self.most)
        embeds = torch.cat([embeds[:, :1] + state.embed[:, None], embeds[:, 1:]], dim=1)
        total = state.weight + weights.sum(1)
        whole = total.floor().long()
        rest = embeds.gather(1, whole[:, None, None].expand(-1, 1, self.dim))[:, 0]
        counts = torch.where(x.last, (total + self.tail).floor().long(), whole)
        given = embeds[:, :room] * valid_mask(counts, room)[..., None]
        return Chunk(given, counts, x.last), CifState(rest, total - whole)


def _on_grid(weights: Tensor) -> Tensor:
    """(batch, steps) double, rounded; the gradient passes as if nothing were rounded."""
    return (weights.detach() / GRID).round() * GRID + (weights - weights.detach())


def _integrated(hidden: Tensor, weights: Tensor, begun: Tensor, tokens: int, most: int) -> Tensor:
    """The tokens' sums and that of what follows them: (batch, tokens + 1, dim).

    Args:
        hidden: (batch, steps, dim).
        weights: (batch, steps), at most `most` each.
        begun: (batch,), weight of the first token before the first step.
    """
    batch, _, dim = hidden.shape
    ends = begun[:, None] + weights.cumsum(1)
    starts = ends - weights
    first = starts.detach().floor()
    row = (tokens + 1) * torch.arange(batch, device=hidden.device)[:, None]
    sums = hidden.new_zeros(batch * (tokens + 1), dim)
    for k in range(most + 1):  # a step reaches into so many tokens after the one that it begins in
        token = first + k
        shared = (torch.minimum(ends, token + 1) - torch.maximum(starts, token)).clamp(min=0)
        index = row + token.nan_to_num().long().clamp(max=tokens)
        sums = sums.index_add(0, index.flatten(), (shared.to(hidden)[..., None] * hidden).flatten(0, 1))
    return sums.view(batch, tokens + 1, dim)


def _shared(hidden: Tensor, weights: Tensor, begun: Tensor, tokens: int) -> Tensor:
    """The first `tokens` of what `_integrated` gives, of operations that graphs have; its time grows with `tokens`."""
    ends = begun[:, None] + weights.cumsum(1)
    token = torch.arange(tokens, device=hidden.device, dtype=ends.dtype)[:, None]
    starts, ends = (ends - weights)[:, None], ends[:, None]
    shared = (torch.minimum(ends, token + 1) - torch.maximum(starts, token)).clamp(min=0)
    return shared.to(hidden) @ hidden
