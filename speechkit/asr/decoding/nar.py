"""Decoding of Paraformer: the best token of every embedding that integrate-and-fire found, whole or block by block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.blocks import Grid, unpacked
from speechkit.asr.cif import CifState
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.greedy import left_aligned
from speechkit.asr.sanm_decoder import SanmDecoder, Sight
from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk, where

if TYPE_CHECKING:
    from speechkit.asr.paraformer import CifPredictor


class NarWholeState(NamedTuple):
    """(batch,) int64 each."""

    node: Tensor  # of the booster
    steps: Tensor  # taken so far


class NarState(NamedTuple):
    """What the tokens of the next block need of the past."""

    cif: CifState
    memory: Tensor  # (batch, decoder_look_back * size, dim) steps
    held: Tensor  # (batch,) int64, how many of them are valid
    tokens: tuple[Tensor, ...]  # of each layer (batch, kernel - 1, dim), the last tokens
    node: Tensor  # (batch,) int64, of the booster
    steps: Tensor  # (batch,) int64, taken so far


class _Nar(nn.Module):
    """What both have in common."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(
        self,
        predictor: "CifPredictor",
        decoder: SanmDecoder,
        special: Sequence[int] = (),
        booster: PhraseBooster | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        self.compat = compat
        self.predictor, self.decoder, self.special = predictor, decoder, tuple(special)
        self.booster = booster if booster is None else booster.to(decoder.norm.weight.device)

    def _start(self, batch: int) -> tuple[Tensor, Tensor]:
        """The booster's node and the steps of streams that have not begun."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=self.decoder.norm.weight.device)
        return zeros + (0 if self.booster is None else self.booster.initial), zeros

    def _said(self, scores: Tensor, counts: Tensor, steps: Tensor, node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Emissions (batch, tokens, 3), how many, and the node after them, of (batch, tokens, vocabulary) scores."""
        log_probs = scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float))
        if self.booster is None:
            best = log_probs.argmax(-1)
        else:
            best, node = _boosted(log_probs, counts, node, self.booster)
        chosen = log_probs.gather(-1, best[..., None])[..., 0]
        kept = valid_mask(counts, best.shape[1])
        for token in self.special:
            kept = kept & (best != token)
        values = torch.stack([best.to(chosen), steps.to(chosen), chosen], dim=-1)
        return *left_aligned(values, kept), node


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

    With ``compat="reference"`` what a last token lacks is taken, as with FunASR, from the padding of a batch.
    """

    def init_state(self, batch: int) -> NarWholeState:
        """State of `batch` rows of utterances."""
        return NarWholeState(*self._start(batch))

    @torch.no_grad()
    def step(self, x: Chunk, state: NarWholeState) -> tuple[Chunk, NarWholeState]:
        """(batch, steps, dim) -> (batch, tokens, 3) of token, step and log-probability."""
        valid = valid_mask(x.lengths, x.values.shape[1])
        weights = self.predictor(x.values) * valid
        if self.compat:
            fired = self.predictor.cif.padded(x.values, weights, x.lengths)
        else:
            fired = self.predictor.cif(x.values, weights, x.lengths)
        room = fired.embeds.shape[1]
        sight = Sight(valid_mask(fired.counts, room), x.values, valid)
        scores = self.decoder(fired.embeds, sight) if room else self.decoder.nothing(fired.embeds)
        last = (x.lengths - 1).clamp(min=0)[:, None]
        steps = self.predictor.cif.fires(fired.weights, room).minimum(last) + state.steps[:, None]
        values, lengths, node = self._said(scores, fired.counts, steps, state.node)
        return Chunk(values, lengths, x.last), NarWholeState(node, state.steps + x.lengths)

    def forward(self, encoder: Tensor, lengths: Tensor) -> Chunk:
        """(batch, steps, dim) and (batch,) -> what whole utterances say."""
        last = torch.ones_like(lengths, dtype=torch.bool)
        return self.step(Chunk(encoder, lengths, last), self.init_state(len(encoder)))[0]


class NarBlocks(_Nar):
    """Tokens of packed `Blocks`, one after another, as a streaming module.

    The output has room for a token a step and one: (batch, blocks * (room + 1), 3). With ``compat="reference"`` the
    decoder looks back, as with FunASR, at the last steps of the last block that had tokens, its look-ahead included.
    """

    def __init__(
        self,
        predictor: "CifPredictor",
        decoder: SanmDecoder,
        grid: Grid,
        special: Sequence[int] = (),
        booster: PhraseBooster | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(predictor, decoder, special, booster, compat)
        self.grid = grid
        self.reach = grid.decoder_look_back * grid.size

    def init_state(self, batch: int) -> NarState:
        """State of `batch` streams that have not begun."""
        node, steps = self._start(batch)
        memory = self.decoder.norm.weight.new_zeros(batch, self.reach, self.decoder.dim)
        begin = steps - (self.grid.right if self.compat else 0)  # zeros that stand in front
        return NarState(
            self.predictor.cif.init_state(batch), memory, steps, self.decoder.init_state(batch), node, begin
        )

    @torch.no_grad()
    def step(self, x: Chunk, state: NarState) -> tuple[Chunk, NarState]:
        """(batch, blocks, room * dim + 3) -> (batch, blocks * (room + 1), 3) of token, step and log-probability."""
        values, kept = [], []
        for i in range(x.values.shape[1]):
            emitted, count, after = self._block(x.values[:, i : i + 1], state)
            there = i < x.lengths
            state = where(there, after, state)
            values.append(emitted)
            kept.append(valid_mask(count * there, emitted.shape[1]))
        return Chunk(*left_aligned(torch.cat(values, dim=1), torch.cat(kept, dim=1)), x.last), state

    def _block(self, packed: Tensor, state: NarState) -> tuple[Tensor, Tensor, NarState]:
        """Emissions (batch, room + 1, 3), how many, and the state after (batch, 1, room * dim + 3)."""
        grid = self.grid
        block = unpacked(packed, grid.room)
        rows, last = block.rows[:, 0], block.last[:, 0]
        valid, owned = block.valid()[:, 0], block.owned(grid)[:, 0]
        weights = (self.predictor(rows) * owned).double()
        cif = self.predictor.cif
        heard = torch.cat([rows, weights[..., None].to(rows)], dim=-1)
        every = torch.full_like(state.steps, grid.room)
        fired, after = cif.step(Chunk(heard, every, last), state.cif)
        room = fired.values.shape[1]
        own = owned.sum(1)
        final = (state.steps + own - 1).clamp(min=0)[:, None]
        steps = (state.steps[:, None] - grid.left + cif.fires(weights, room, state.cif.weight)).clamp(min=0)
        scores, tokens = self._decoded(fired, rows, valid, state)
        emitted, count, node = self._said(scores, fired.lengths, steps.minimum(final)[:, : scores.shape[1]], state.node)
        kept = rows if self.compat else rows[:, grid.left : grid.left + grid.size]
        memory = torch.cat([state.memory, kept], dim=1)[:, kept.shape[1] :]
        held = (state.held + kept.shape[1]).clamp(max=self.reach)
        new = NarState(after, memory, held, tokens, node, state.steps + own)
        if self.compat:
            none = fired.lengths == 0
            memory, held = where(none, (state.memory, state.held), (new.memory, new.held))
            new = new._replace(memory=memory, held=held)
        return F.pad(emitted, (0, 0, 0, room - emitted.shape[1])), count, new

    def _decoded(self, fired: Chunk, rows: Tensor, valid: Tensor, state: NarState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Scores of the tokens, (batch, tokens, vocabulary), as many as the row with most of them has."""
        room = fired.values.shape[1]
        if not torch.compiler.is_exporting():
            room = int(fired.lengths.max()) if len(rows) else 0
        if not room:
            return self.decoder.nothing(fired.values[:, :0]), state.tokens
        there = torch.arange(-self.reach, 0, device=rows.device) >= -state.held[:, None]
        sight = Sight(
            valid_mask(fired.lengths, room),
            torch.cat([state.memory, rows], dim=1),
            torch.cat([there, valid], dim=1),
        )
        return self.decoder.step(fired.values[:, :room], sight, state.tokens)

    def forward(self, blocks: Tensor, lengths: Tensor) -> Chunk:
        """(batch, blocks, room * dim + 3) and (batch,) -> what whole utterances say."""
        last = torch.ones_like(lengths, dtype=torch.bool)
        return self.step(Chunk(blocks, lengths, last), self.init_state(len(blocks)))[0]
