"""Paraformer (Gao et al. 2022): all tokens at once, from embeddings that integrate-and-fire found in encoder steps."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.acoustic import check_decoder, context_within
from speechkit.asr.blocks import WHOLE, Grid
from speechkit.asr.cif import Cif, Fired
from speechkit.asr.conformer_blocks import ConformerBlocks
from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.nar import NarBlocks, NarWhole, no_beam
from speechkit.asr.decoding.nar_scores import BlockScores, WholeScores
from speechkit.asr.decoding.scoring import Scorer
from speechkit.asr.decoding.search import Search
from speechkit.asr.sanm_decoder import SanmDecoder, Sight
from speechkit.asr.sanm_encoder import SanmEncoder
from speechkit.features import LogMel
from speechkit.low_frame_rate import LowFrameRateFbank
from speechkit.nn.masks import valid_mask
from speechkit.streaming.chain import Chain

LEAD = 1.5  # steps


class CifPredictor(nn.Module):
    """How much of a token each step is: a convolution over three steps, and a sigmoid.

    Args:
        dim: of the steps.
        tail: as of `Cif`.
    """

    def __init__(self, dim: int = 512, tail: float = 0.45) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding=1)
        self.out = nn.Linear(dim, 1)
        self.cif = Cif(dim, tail)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, steps, dim), zero where they are not valid -> (batch, steps) weights from 0 to 1."""
        with torch.autocast(hidden.device.type, enabled=False):  # half precision has 256 weights under 1
            hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float))
            seen = F.relu(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
            return torch.sigmoid(self.out(seen)[..., 0])


class Heard(NamedTuple):
    """Encoder steps of utterances, in blocks or whole, with the weights of those that are no other block's."""

    steps: Tensor  # (batch, steps, dim), block after block
    valid: Tensor  # (batch, steps) bool
    owned: Tensor  # (batch, steps) bool
    weights: Tensor  # (batch, steps), zero where they are not owned
    room: int  # steps of a block
    grid: Grid


class Paraformer(nn.Module):
    """Samples to tokens, whole utterances or block by block with the same weights.

    Args:
        front: samples to features.
        encoder: features to steps.
        predictor: steps to token embeddings.
        decoder: token embeddings to tokens.
        ctc: a head that training may have beside the decoder.
        grids: of the streams that it is for, each [left, size, right, look_back, decoder_look_back] (`Grid`).
        whole: whether it is for whole utterances, too.
        special: tokens of the tokenizer that are no text.
        end: the one of them that ends an utterance; None where the decoder has its own.

    Raises:
        ValueError: the parts do not fit, or it is for nothing.
    """

    def __init__(
        self,
        front: LowFrameRateFbank | LogMel,
        encoder: SanmEncoder | ConformerBlocks,
        predictor: CifPredictor,
        decoder: SanmDecoder,
        ctc: CtcHead | None = None,
        grids: Sequence[Sequence[int]] = (),
        whole: bool = True,
        special: Sequence[int] = (),
        end: int | None = None,
    ) -> None:
        super().__init__()
        if any(len(grid) != 5 for grid in grids):
            raise ValueError(f"a grid has five numbers, got {list(grids)}")
        self.front, self.encoder, self.predictor, self.decoder, self.ctc = front, encoder, predictor, decoder, ctc
        self.contexts = [WHOLE] * whole + [Grid(*map(int, grid)).check() for grid in grids]
        ahead = [grid.size + grid.right for grid in self.contexts]
        if len(set(ahead)) < len(ahead):
            raise ValueError(f"of grids with one look-ahead only one could be chosen, got {list(grids)}")
        if isinstance(encoder, ConformerBlocks):
            for grid in self.contexts:
                encoder.context(grid)
        if not self.contexts:
            raise ValueError("a Paraformer hears whole utterances, blocks of a grid, or both, got neither")
        if grids and not decoder.causal:
            raise ValueError("streams need a decoder that sees no later tokens: a shift of half its kernel")
        if (end is None) != decoder.end or not all(0 <= i < decoder.vocab_size for i in (*special, end or 0)):
            raise ValueError(f"the token of the end must be the decoder's own or one of the vocabulary, got {end}")
        self.vocab_size = decoder.vocab_size
        self.end = decoder.vocab_size if end is None else end
        self.special = sorted({*special, self.end})
        self.compat: str | None = None
        features = front.out if isinstance(front, LowFrameRateFbank) else front.n_mels
        if features != encoder.in_dim:
            raise ValueError(f"the front end gives {features} numbers, and the encoder takes {encoder.in_dim}")
        dims = encoder.dim, predictor.out.in_features, decoder.dim
        if len(set(dims)) > 1 or (ctc is not None and ctc.out.in_features != encoder.dim):
            raise ValueError(f"the parts must have one width, got {dims} of encoder, predictor and decoder")

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        return self.front.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.decoder.norm.weight.device

    @property
    def step_ms(self) -> float:
        """Milliseconds between encoder steps."""
        return 1000 * self.front.hop * self.encoder.stride / self.rate

    @property
    def lead_ms(self) -> float:
        """How much earlier than the step that completes it a token begins, as FunASR's timestamps have it."""
        return LEAD * self.step_ms

    def grouped(self, context: Grid) -> int:
        """Encoder steps in an output of `streaming`: those of a block."""
        return context.size

    @property
    def decoders(self) -> list[str]:
        """The one that says all tokens at once."""
        return ["nar"]

    def latency_ms(self, context: Grid) -> float:
        """Longest look-ahead of a grid in milliseconds, infinite of whole utterances."""
        return math.inf if context.whole else (context.size - 1 + context.right) * self.step_ms

    def context_at(self, latency_ms: float) -> Grid:
        """As `context_within` the grids that the model is for."""
        return context_within(latency_ms, {self.latency_ms(grid): grid for grid in self.contexts if not grid.whole})

    def streams(self, context: Grid) -> bool:
        """Whether the model can run chunk by chunk at a context."""
        return not context.whole

    def encode(self, wave: Tensor, lengths: Tensor, context: Grid | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> steps (batch, steps, dim) or, of a grid, packed `Blocks`, and how many of each row."""
        features, counts = self.front(wave, lengths)
        grid = self.contexts[0] if context is None else context
        if grid.whole:
            steps, counts = self.encoder(features, counts, self.compat)
            return steps, counts
        blocks = self.encoder.blocks(features, counts, grid)
        return blocks.packed(), blocks.last.int().argmax(1) + 1

    def streaming(self, context: Grid, chunks: int = 1) -> Chain:
        """Samples (batch, time, 1) to packed `Blocks`, one a call, whatever `chunks` is; equal to `encode`."""
        return Chain(self.front, self.encoder.at(context, self.compat))

    def greedy(self, decoder: str, context: Grid, booster: PhraseBooster | None = None) -> NarWhole | NarBlocks:
        """Steps or packed blocks to tokens."""
        check_decoder(self, decoder)
        if context.whole:
            return NarWhole(self.whole_scores(booster), self.device, self.special, booster)
        blocks = BlockScores(self.predictor, self.decoder, context, self.compat)
        return NarBlocks(blocks, context, self.device, self.special, booster)

    def whole_scores(self, booster: PhraseBooster | None = None) -> WholeScores:
        """Steps of whole utterances to scores; the decoder of a plain Paraformer knows of no phrases."""
        return WholeScores(self.predictor, self.decoder, self.compat)

    def beam(self, decoder: str, context: Grid, beam: int, scorers: Sequence[Scorer[Any]] = ()) -> Search:
        """There is none, and `InputError` says so."""
        check_decoder(self, decoder)
        raise no_beam()

    def heard(self, features: Tensor, lengths: Tensor, grid: Grid = WHOLE) -> Heard:
        """What training needs of (batch, time, in_dim) features, (batch,): every step, and its weight."""
        if grid.whole:
            steps, counts = self.encoder(features, lengths, self.compat)
            valid = valid_mask(counts, steps.shape[1])
            return Heard(steps, valid, valid, self.predictor(steps) * valid, steps.shape[1], grid)
        blocks = self.encoder.blocks(features, lengths, grid)
        owned = blocks.owned(grid)
        weights = self.predictor(blocks.rows.flatten(0, 1)).view_as(owned) * owned
        steps, valid, own, weights = (part.flatten(1, 2) for part in (blocks.rows, blocks.valid(), owned, weights))
        return Heard(steps, valid, own, weights, grid.room, grid)

    def integrated(self, heard: Heard, target_lengths: Tensor | None = None) -> Fired:
        """Embeddings of the tokens, as many as the targets have where their lengths are given."""
        every = torch.full_like(heard.valid[:, 0], heard.steps.shape[1], dtype=torch.int64)
        return self.predictor.cif(heard.steps, heard.weights, every, target_lengths)

    def text(self, tokens: Sequence[int]) -> list[int]:
        """The tokens of the tokenizer that are text."""
        return [token for token in tokens if token not in self.special]

    def sight(self, heard: Heard, fired: Fired) -> Sight:
        """What each token sees: its own block's steps, and those that the grid lets it look back at."""
        tokens = valid_mask(fired.counts, fired.embeds.shape[1])
        if heard.grid.whole:
            return Sight(tokens, heard.steps, heard.valid)
        at = torch.arange(heard.steps.shape[1], device=tokens.device)
        last = heard.grid.blocks(heard.owned.sum(1))[:, None]  # a token that no step completes is the last block's
        place = (self.predictor.cif.fires(fired.weights, tokens.shape[1]) // heard.room).minimum(last)
        back = place[..., None] - at // heard.room  # blocks from a token back to a step
        seen = (back > 0) & (back <= heard.grid.decoder_look_back) & heard.owned[:, None]
        return Sight(tokens, heard.steps, seen | ((back == 0) & heard.valid[:, None]))
