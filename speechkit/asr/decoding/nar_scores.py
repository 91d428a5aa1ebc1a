"""Scores of Paraformer's tokens, whole utterances at a time or block by block."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.blocks import Grid, unpacked
from speechkit.asr.cif import CifState, Fired
from speechkit.asr.sanm_decoder import SanmDecoder, Sight
from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk, where

if TYPE_CHECKING:
    from speechkit.asr.paraformer import CifPredictor


class BlockState(NamedTuple):
    """What the tokens of the next block need of the past."""

    cif: CifState
    memory: Tensor  # (batch, decoder_look_back * size, dim) steps
    held: Tensor  # (batch,) int64, how many of them are valid
    tokens: tuple[Tensor, ...]  # of each layer (batch, kernel - 1, dim), the last tokens
    steps: Tensor  # (batch,) int64, taken so far


class WholeScores(nn.Module):
    """Steps of whole utterances to the step and the log-probabilities of every token.

    With ``compat="reference"`` what a last token lacks is taken, as with FunASR, from the padding of a batch.
    """

    def __init__(self, predictor: "CifPredictor", decoder: SanmDecoder, compat: str | None = None) -> None:
        super().__init__()
        self.predictor, self.decoder, self.compat = predictor, decoder, compat

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, steps, dim), (batch,) -> (batch, tokens, 1 + vocabulary), and how many tokens of each row count."""
        valid = valid_mask(lengths, x.shape[1])
        weights = self.predictor(x) * valid
        cif = self.predictor.cif
        fired = (cif.padded if self.compat else cif)(x, weights, lengths)
        room = fired.embeds.shape[1]
        sight = Sight(valid_mask(fired.counts, room), x, valid)
        some = torch.compiler.is_exporting() or room
        scores = self.decoded(fired.embeds, sight) if some else self.decoder.nothing(fired.embeds)
        return _scored(scores, self.completed(x, lengths, fired)), fired.counts

    def decoded(self, embeds: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> scores (batch, tokens, vocabulary)."""
        scores: Tensor = self.decoder(embeds, sight)
        return scores

    def completed(self, x: Tensor, lengths: Tensor, fired: Fired) -> Tensor:
        """The step that completes each token, (batch, tokens), of what was fired of steps (batch, steps, dim)."""
        last = (lengths - 1).clamp(min=0)[:, None]
        return self.predictor.cif.fires(fired.weights, fired.embeds.shape[1]).minimum(last)


def _scored(scores: Tensor, steps: Tensor) -> Tensor:
    """(batch, tokens, 1 + vocabulary): the step, and log-probabilities."""
    log_probs = scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float))
    return torch.cat([steps[..., None].to(log_probs), log_probs], dim=-1)


class BlockScores(nn.Module):
    """Packed `Blocks`, one a call, to the step and the log-probabilities of every token, as a streaming module.

    The output has room for a token a step and one. With ``compat="reference"`` the decoder looks back, as with FunASR,
    at the last steps of the last block that had tokens, its look-ahead included.
    """

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, predictor: "CifPredictor", decoder: SanmDecoder, grid: Grid, compat: str | None = None) -> None:
        super().__init__()
        self.predictor, self.decoder, self.grid, self.compat = predictor, decoder, grid, compat
        self.reach = grid.decoder_look_back * grid.size

    def init_state(self, batch: int) -> BlockState:
        """State of `batch` streams that have not begun."""
        weight = self.decoder.norm.weight
        held = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        memory = weight.new_zeros(batch, self.reach, self.decoder.dim)
        begin = held - (self.grid.right if self.compat else 0)  # zeros that stand in front
        return BlockState(self.predictor.cif.init_state(batch), memory, held, self.decoder.init_state(batch), begin)

    @torch.no_grad()
    def step(self, x: Chunk, state: BlockState) -> tuple[Chunk, BlockState]:
        """(batch, 1, room * dim + 3) -> (batch, room + 1, 1 + vocabulary)."""
        block = unpacked(x.values, self.grid.room)
        rows, there = block.rows[:, 0], x.lengths > 0
        valid, owned = block.valid()[:, 0], block.owned(self.grid)[:, 0] & there[:, None]
        weights = (self.predictor(rows) * owned).double()
        heard = torch.cat([rows, weights[..., None].to(rows)], dim=-1)
        every = torch.full_like(x.lengths, self.grid.room)
        fired, cif = self.predictor.cif.step(Chunk(heard, every, block.last[:, 0] & there), state.cif)
        scores, tokens = self._decoded(fired, rows, valid, state)
        values = _scored(scores, self._steps(weights, owned, state)[:, : scores.shape[1]])
        values = values * valid_mask(fired.lengths, scores.shape[1])[..., None]
        values = F.pad(values, (0, 0, 0, fired.values.shape[1] - scores.shape[1]))
        kept = rows if self.compat else rows[:, self.grid.left : self.grid.left + self.grid.size]
        memory = torch.cat([state.memory, kept], dim=1)[:, kept.shape[1] :]
        held = (state.held + kept.shape[1]).clamp(max=self.reach)
        if self.compat:
            memory, held = where(fired.lengths > 0, (memory, held), (state.memory, state.held))
        new = BlockState(cif, memory, held, tokens, state.steps + owned.sum(1))
        return Chunk(values, fired.lengths, x.last), where(there, new, state)

    def _steps(self, weights: Tensor, owned: Tensor, state: BlockState) -> Tensor:
        """The step that completes each token (batch, room + 1), counted from the start of the stream."""
        final = (state.steps + owned.sum(1) - 1).clamp(min=0)[:, None]
        fires = self.predictor.cif.fires(weights, self.grid.room + 1, state.cif.weight)
        return (state.steps[:, None] - self.grid.left + fires).clamp(min=0).minimum(final)

    def _decoded(
        self, fired: Chunk, rows: Tensor, valid: Tensor, state: BlockState
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Scores of the tokens, (batch, tokens, vocabulary), as many as the row with most of them has."""
        room = fired.values.shape[1]
        if not torch.compiler.is_exporting():
            room = int(fired.lengths.max()) if len(rows) else 0
        if not torch.compiler.is_exporting() and not room:
            return self.decoder.nothing(fired.values[:, :0]), state.tokens
        there = torch.arange(-self.reach, 0, device=rows.device) >= -state.held[:, None]
        sight = Sight(
            valid_mask(fired.lengths, room),
            torch.cat([state.memory, rows], dim=1),
            torch.cat([there, valid], dim=1),
        )
        return self.decoder.step(fired.values[:, :room], sight, state.tokens)
