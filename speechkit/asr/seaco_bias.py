"""The bias decoder of SeACo-Paraformer (Shi et al. 2023): token embeddings over phrases to tokens, or to "none"."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.asr.sanm_decoder import MAX_LAYERS, DecoderLayer, FeedForward, Sight
from speechkit.nn.sanm import EPSILON

RANKING_LAYER = 6  # of the bias decoder, counted from 1: its attention tells which of many phrases matter
MOST_PHRASES = 50


class PhraseAttention(nn.Module):
    """Layers of Paraformer's decoder that attend to phrases; they have no embeddings and no output layer of their own.

    Args:
        dim: of embeddings and phrases.
        layers, heads, inner, kernel, shift, dropout: as of `SanmDecoder`.
    """

    def __init__(
        self, dim: int, layers: int, heads: int, inner: int, kernel: int, shift: int = 0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if not 1 <= layers <= MAX_LAYERS:
            raise ValueError(f"a decoder has 1 to {MAX_LAYERS} layers, got {layers}")
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, inner, kernel, shift, dropout) for _ in range(layers))
        self.last_norm, self.last = nn.LayerNorm(dim, EPSILON), FeedForward(dim, inner, dropout)
        self.norm = nn.LayerNorm(dim, EPSILON)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> the same shape."""
        for layer in self.layers:
            x, _ = layer(x, sight)
        found: Tensor = self.norm(self.last(self.last_norm(x)))
        return found

    def relevance(self, x: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> (batch, phrases): attention in the sixth layer, summed over heads and tokens."""
        layers: list[Any] = list(self.layers[:RANKING_LAYER])
        for layer in layers[:-1]:
            x, _ = layer(x, sight)
        return (layers[-1].attention(x, sight) * sight.tokens[:, None, :, None]).sum((1, 2))


class BiasDecoder(nn.Module):
    """Phrases as single vectors, and the tokens that they would have in the place of the recogniser's.

    Of more than 50 phrases each utterance has the 50 that its `hidden` attends to most, summed over heads and tokens
    (ASF in FunASR, where all utterances of a batch have those of the first). No reference outputs of this model are at
    hand: the shapes of published tensors are checked, and what it computes is tested against its definition.

    Args:
        vocab_size: of the decoder's output.
        dim: of embeddings and phrases.
        layers, heads, inner, kernel, shift, dropout: of `PhraseAttention`.
        no_bias: the token that says that a position belongs to no phrase.

    Raises:
        ValueError: `no_bias` is not of the vocabulary, or the sizes do not fit.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 512,
        layers: int = 6,
        heads: int = 4,
        inner: int = 1024,
        kernel: int = 21,
        shift: int = 0,
        dropout: float = 0.1,
        no_bias: int = 8377,
    ) -> None:
        super().__init__()
        if not 0 <= no_bias < vocab_size:
            raise ValueError(f"no_bias must be one of the {vocab_size} tokens, got {no_bias}")
        self.no_bias = no_bias
        self.encoder = nn.LSTM(dim, dim, 2, batch_first=True)
        self.decoder = PhraseAttention(dim, layers, heads, inner, kernel, shift, dropout)
        self.out = nn.Linear(dim, vocab_size)

    def phrases(self, embed: nn.Embedding, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of each phrase, at least one -> (phrases, dim): the encoder's state after the last of each."""
        device = embed.weight.device
        rows = [torch.tensor(list(row), device=device) for row in tokens]
        heard, _ = self.encoder(embed(nn.utils.rnn.pad_sequence(rows, batch_first=True)))
        at = torch.tensor([len(row) - 1 for row in tokens], device=device)
        last: Tensor = heard[torch.arange(len(rows), device=device), at]
        return last

    def forward(self, embeds: Tensor, hidden: Tensor, tokens: Tensor, phrases: Tensor) -> Tensor:
        """Scores of the vocabulary, (batch, tokens, vocab_size).

        Args:
            embeds: (batch, tokens, dim) of integrate-and-fire.
            hidden: (batch, tokens, dim), what the recogniser's output layer takes.
            tokens: (batch, tokens) bool.
            phrases: (phrases, dim), the last of which stands for none.
        """
        memory = self._filtered(hidden, tokens, phrases)
        sight = Sight(tokens, memory, memory.new_ones(memory.shape[:2], dtype=torch.bool))
        scores: Tensor = self.out(self.decoder(embeds, sight) + self.decoder(hidden, sight))
        return scores

    def merged(self, scores: Tensor, bias: Tensor) -> Tensor:
        """Log-probabilities (batch, tokens, vocab_size): the recogniser's where the best of `bias` is `no_bias`."""
        none = bias.argmax(-1, keepdim=True) == self.no_bias
        return torch.where(none, scores.log_softmax(-1), bias.log_softmax(-1))

    def _filtered(self, hidden: Tensor, tokens: Tensor, phrases: Tensor) -> Tensor:
        """The phrases that each row has, (batch, at most 51, dim), the last of which stands for none."""
        every = phrases.expand(len(hidden), -1, -1)
        if len(phrases) - 1 <= MOST_PHRASES:
            return every
        sight = Sight(tokens, every, every.new_ones(every.shape[:2], dtype=torch.bool))
        best = self.decoder.relevance(hidden, sight)[:, :-1].topk(MOST_PHRASES).indices
        return torch.cat([phrases[best], every[:, -1:]], dim=1)
