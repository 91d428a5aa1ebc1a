"""Decoding of Paraformer: the best token of every embedding that integrate-and-fire found, whole or block by block."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.blocks import Grid, unpacked
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.greedy import left_aligned
from speechkit.errors import InputError
from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk, Streaming


def no_beam() -> InputError:
    """What to raise where a beam search is asked for."""
    return InputError("this model says all tokens at once: it has no beam search and takes no language model")


class NarWholeState(NamedTuple):
    """(batch,) int64 each."""

    node: Tensor  # of the booster
    steps: Tensor  # taken so far


class NarState(NamedTuple):
    """The scores' own state, and what phrases need."""

    scores: Any
    node: Tensor  # (batch,) int64, of the booster
    steps: Tensor  # (batch,) int64, taken so far


class _Nar(nn.Module):
    """What both have in common."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, device: torch.device, special: Sequence[int], booster: PhraseBooster | None) -> None:
        super().__init__()
        self.device, self.special = device, tuple(special)
        self.booster = booster if booster is None else booster.to(device)

    def _start(self, batch: int) -> tuple[Tensor, Tensor]:
        """The booster's node and the steps of streams that have not begun."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=self.device)
        return zeros + (0 if self.booster is None else self.booster.initial), zeros

    def _said(self, scored: Tensor, counts: Tensor, node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Emissions (batch, tokens, 3), how many, and the node after them, of (batch, tokens, 1 + vocabulary)."""
        log_probs = scored[..., 1:]
        if self.booster is None:
            best = log_probs.argmax(-1)
        else:
            best, node = _boosted(log_probs, counts, node, self.booster)
        chosen = log_probs.gather(-1, best[..., None])[..., 0]
        kept = valid_mask(counts, best.shape[1])
        for token in self.special:
            kept = kept & (best != token)
        values, lengths = left_aligned(torch.stack([best.to(chosen), scored[..., 0], chosen], dim=-1), kept)
        return values, lengths, node


def _boosted(log_probs: Tensor, counts: Tensor, node: Tensor, booster: PhraseBooster) -> tuple[Tensor, Tensor]:
    """Tokens (batch, tokens), one after another because each moves the booster, and the node after them."""
    known = booster.following.shape[1]
    tokens = []
    for at, scores in enumerate(log_probs.unbind(1)):
        gain = F.pad(booster.gain[booster.following[node]], (0, scores.shape[1] - known))
        token = (scores + gain.to(scores)).argmax(-1)
        moved = booster.following[node, token.clamp(max=known - 1)].to(node)
        node = torch.where((at < counts) & (token < known), moved, node)
        tokens.append(token)
    return torch.stack(tokens, dim=1) if tokens else counts.new_zeros(len(counts), 0), node


class NarWhole(_Nar):
    """Tokens of whole utterances: every call is one. The room of what comes out depends on the call.

    Args:
        scores: `WholeScores` or the like.
        device: where it computes.
        special: tokens that are no text.
        booster: phrases to favour.
    """

    def __init__(
        self,
        scores: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        device: torch.device,
        special: Sequence[int] = (),
        booster: PhraseBooster | None = None,
    ) -> None:
        super().__init__(device, special, booster)
        self.scores = scores

    def init_state(self, batch: int) -> NarWholeState:
        """State of `batch` rows of utterances."""
        return NarWholeState(*self._start(batch))

    @torch.no_grad()
    def step(self, x: Chunk, state: NarWholeState) -> tuple[Chunk, NarWholeState]:
        """(batch, steps, dim) -> (batch, tokens, 3) of token, step and log-probability."""
        scored, counts = self.scores(x.values, x.lengths)
        later = F.pad(state.steps[:, None, None].to(scored), (0, scored.shape[2] - 1))
        values, lengths, node = self._said(scored + later, counts, state.node)
        return Chunk(values, lengths, x.last), NarWholeState(node, state.steps + x.lengths)

    def forward(self, encoder: Tensor, lengths: Tensor) -> Chunk:
        """(batch, steps, dim) and (batch,) -> what whole utterances say."""
        last = torch.ones_like(lengths, dtype=torch.bool)
        return self.step(Chunk(encoder, lengths, last), self.init_state(len(encoder)))[0]


class NarBlocks(_Nar):
    """Tokens of packed `Blocks`, one after another, as a streaming module.

    The output has room for a token a step and one: (batch, blocks * (room + 1), 3).

    Args:
        scores: `BlockScores` or the like.
        grid: of the blocks.
        device, special, booster: as of `NarWhole`.
    """

    def __init__(
        self,
        scores: Streaming[Any],
        grid: Grid,
        device: torch.device,
        special: Sequence[int] = (),
        booster: PhraseBooster | None = None,
    ) -> None:
        super().__init__(device, special, booster)
        self.scores, self.grid = scores, grid

    def init_state(self, batch: int) -> NarState:
        """State of `batch` streams that have not begun."""
        return NarState(self.scores.init_state(batch), *self._start(batch))

    @torch.no_grad()
    def step(self, x: Chunk, state: NarState) -> tuple[Chunk, NarState]:
        """(batch, blocks, room * dim + 3) -> (batch, blocks * (room + 1), 3) of token, step and log-probability."""
        values = [x.values.new_zeros(x.values.shape[0], 0, 3)]
        kept = [valid_mask(x.lengths, 0)]
        blocks = unpacked(x.values, self.grid.room)
        owned = blocks.owned(self.grid).sum(-1) * valid_mask(x.lengths, x.values.shape[1])
        for i in range(x.values.shape[1]):
            scored, inner = self.scores.step(
                Chunk(x.values[:, i : i + 1], (i < x.lengths).long(), x.last), state.scores
            )
            emitted, count, node = self._said(scored.values, scored.lengths, state.node)
            state = NarState(inner, node, state.steps + owned[:, i])
            values.append(emitted)
            kept.append(valid_mask(count, emitted.shape[1]))
        return Chunk(*left_aligned(torch.cat(values, dim=1), torch.cat(kept, dim=1)), x.last), state

    def forward(self, blocks: Tensor, lengths: Tensor) -> Chunk:
        """(batch, blocks, room * dim + 3) and (batch,) -> what whole utterances say."""
        last = torch.ones_like(lengths, dtype=torch.bool)
        return self.step(Chunk(blocks, lengths, last), self.init_state(len(blocks)))[0]
