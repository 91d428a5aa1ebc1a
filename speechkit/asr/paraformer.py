"""Paraformer (Gao et al. 2022): all tokens of an utterance at once, from embeddings that integrate-and-fire found."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.cif import Cif, Fired
from speechkit.nn.masks import valid_mask
from speechkit.nn.sanm import EPSILON, Memory, SanmLayer, attend, positions


class SanmEncoder(nn.Module):
    """Low-frame-rate features, scaled, with positions added, through layers of attention with memory.

    Args:
        in_dim: of the features.
        dim: of the layers.
        layers: how many; the first one has nothing beside its attention.
        heads, inner, kernel, shift, dropout: as of `SanmLayer`.
    """

    def __init__(
        self,
        in_dim: int = 560,
        dim: int = 512,
        layers: int = 50,
        heads: int = 4,
        inner: int = 2048,
        kernel: int = 11,
        shift: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_dim, self.dim = in_dim, dim
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            SanmLayer(dim if i else in_dim, dim, heads, inner, kernel, shift, dropout) for i in range(layers)
        )
        self.norm = nn.LayerNorm(dim, EPSILON)

    def embedded(self, features: Tensor, first: Tensor) -> Tensor:
        """(batch, time, in_dim) of which the first is at position `first` (batch,), counted from 1."""
        places = positions(first, features.shape[1], self.in_dim)
        return self.dropout(features * self.dim**0.5 + places.to(features))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, in_dim), (batch,) -> (batch, time, dim), zero after each row's own, (batch,)."""
        valid = valid_mask(lengths, features.shape[1])
        x = self.embedded(features, torch.ones_like(lengths))
        for layer in self.layers:
            x, _ = layer(x, valid)
        return self.norm(x) * valid[..., None], lengths


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

    def weights(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """(batch, steps, dim), zero where (batch, steps) is not valid -> (batch, steps)."""
        seen = F.relu(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
        return torch.sigmoid(self.out(seen))[..., 0] * valid

    def forward(self, hidden: Tensor, lengths: Tensor, target_lengths: Tensor | None = None) -> Fired:
        """As `Cif.forward`, with the weights of its own."""
        return self.cif(hidden, self.weights(hidden, valid_mask(lengths, hidden.shape[1])), lengths, target_lengths)


class FeedForward(nn.Module):
    """Two linear layers with a normalisation between them."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.widen, self.norm = nn.Linear(dim, inner), nn.LayerNorm(inner, EPSILON)
        self.narrow = nn.Linear(inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same shape."""
        return self.narrow(self.norm(self.dropout(F.relu(self.widen(x)))))


class DecoderLayer(nn.Module):
    """A feed-forward network with nothing beside it, a memory over tokens, and attention to the encoder."""

    def __init__(self, dim: int, heads: int, inner: int, kernel: int, shift: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, EPSILON) for _ in range(3))
        self.feed_forward = FeedForward(dim, inner, dropout)
        self.memory = Memory(dim, kernel, shift)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor, memory: Tensor, memory_valid: Tensor) -> Tensor:
        """(batch, tokens, dim), of which (batch, tokens) count, over (batch, steps, dim) -> the same shape."""
        y = self.memory(self.norm2(self.feed_forward(self.norm1(x))), valid)
        x = x + self.dropout(y)
        key, value = self.key_value(memory).chunk(2, dim=-1)
        drop = self.dropout.p if self.training else 0.0
        found = attend(self.query(self.norm3(x)), key, value, memory_valid, self.heads, drop)
        return x + self.dropout(self.out(found))


class SanmDecoder(nn.Module):
    """Token embeddings over encoder steps to scores of the vocabulary, all at once.

    Args:
        vocab_size: tokens.
        dim: of embeddings and steps.
        layers: with attention.
        heads, inner, kernel, shift, dropout: of the layers.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 512,
        layers: int = 16,
        heads: int = 4,
        inner: int = 2048,
        kernel: int = 11,
        shift: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)  # of tokens that training shows it
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, inner, kernel, shift, dropout) for _ in range(layers))
        self.last_norm, self.last = nn.LayerNorm(dim, EPSILON), FeedForward(dim, inner, dropout)
        self.norm, self.out = nn.LayerNorm(dim, EPSILON), nn.Linear(dim, vocab_size)

    def forward(self, embeds: Tensor, counts: Tensor, memory: Tensor, lengths: Tensor) -> Tensor:
        """(batch, tokens, dim), (batch,), (batch, steps, dim), (batch,) -> (batch, tokens, vocab_size)."""
        valid, memory_valid = valid_mask(counts, embeds.shape[1]), valid_mask(lengths, memory.shape[1])
        x = embeds
        for layer in self.layers:
            x = layer(x, valid, memory, memory_valid)
        scores: Tensor = self.out(self.norm(self.last(self.last_norm(x))))
        return scores


class Said(NamedTuple):
    """What Paraformer makes of utterances."""

    log_probs: Tensor  # (batch, tokens, vocab_size)
    counts: Tensor  # (batch,) int64, tokens, the end included
    fires: Tensor  # (batch, tokens) int64, the step in which each was complete


class Paraformer(nn.Module):
    """Features to tokens.

    Args:
        encoder: features to steps.
        predictor: steps to token embeddings.
        decoder: token embeddings to tokens.
    """

    def __init__(self, encoder: SanmEncoder, predictor: CifPredictor, decoder: SanmDecoder) -> None:
        super().__init__()
        self.encoder, self.predictor, self.decoder = encoder, predictor, decoder

    def forward(self, features: Tensor, lengths: Tensor) -> Said:
        """(batch, time, in_dim), (batch,) -> log-probabilities of every token that fired."""
        hidden, lengths = self.encoder(features, lengths)
        weights = self.predictor.weights(hidden, valid_mask(lengths, hidden.shape[1]))
        fired = self.predictor.cif(hidden, weights, lengths)
        scores = self.decoder(fired.embeds, fired.counts, hidden, lengths)
        return Said(scores.log_softmax(-1), fired.counts, self.predictor.cif.fires(weights, scores.shape[1]))
