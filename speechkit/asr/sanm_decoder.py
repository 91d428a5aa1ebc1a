"""The decoder of Paraformer (Gao et al. 2022): token embeddings over encoder steps to tokens, all at once."""

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.sanm import EPSILON, Memory, attend

MAX_LAYERS = 1000


class FeedForward(nn.Module):
    """Two linear layers with a normalisation between them."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.widen, self.norm = nn.Linear(dim, inner), nn.LayerNorm(inner, EPSILON)
        self.narrow = nn.Linear(inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same shape."""
        found: Tensor = self.narrow(self.norm(self.dropout(F.relu(self.widen(x)))))
        return found


class Sight(NamedTuple):
    """Which tokens there are, and what they see."""

    tokens: Tensor  # (batch, tokens) bool
    memory: Tensor  # (batch, steps, dim) encoder steps
    visible: Tensor  # (batch, steps) bool, or (batch, tokens, steps) where not all tokens see the same


class DecoderLayer(nn.Module):
    """A feed-forward network with nothing beside it, a memory over tokens, and attention to the encoder."""

    def __init__(self, dim: int, heads: int, inner: int, kernel: int, shift: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"{dim} dimensions cannot be split among {heads} heads")
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, EPSILON) for _ in range(3))
        self.feed_forward = FeedForward(dim, inner, dropout)
        self.memory = Memory(dim, kernel, shift)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sight: Sight, left: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(batch, tokens, dim) -> the same shape, and what the memory keeps where it is told what was before."""
        x, kept = self._remembered(x, sight, left)
        key, value = self.key_value(sight.memory).chunk(2, dim=-1)
        drop = self.dropout.p if self.training else 0.0
        found = attend(self.query(self.norm3(x)), key, value, sight.visible, self.heads, drop)
        return x + self.dropout(self.out(found)), kept

    def attention(self, x: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> (batch, heads, tokens, steps): the weight of each step, where all are seen."""
        x, _ = self._remembered(x, sight)
        key, _ = self.key_value(sight.memory).chunk(2, dim=-1)
        query, key = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(self.norm3(x)), key))
        return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)

    def _remembered(self, x: Tensor, sight: Sight, left: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The layer up to its attention, and what its memory keeps."""
        entered = self.norm2(self.feed_forward(self.norm1(x)))
        x = x + self.dropout(self.memory(entered, sight.tokens, left))
        return x, None if left is None else self.memory.kept(entered, sight.tokens.sum(1), left)


class SanmDecoder(nn.Module):
    """Token embeddings over encoder steps to scores of the vocabulary.

    Args:
        vocab_size: of the tokenizer.
        dim: of embeddings and steps.
        layers: with attention.
        heads, inner, kernel, shift, dropout: of the layers. Half the kernel is a `shift` that streams need.
        end: whether there is a token for the end of an utterance beyond the tokenizer's own.
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
        end: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= layers <= MAX_LAYERS:
            raise ValueError(f"a decoder has 1 to {MAX_LAYERS} layers, got {layers}")
        self.vocab_size, self.dim, self.end, self.kernel = vocab_size, dim, end, kernel
        self.causal = kernel - 1 - (kernel - 1) // 2 == shift
        self.embed = nn.Embedding(vocab_size + end, dim)  # of tokens that training shows it
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, inner, kernel, shift, dropout) for _ in range(layers))
        self.last_norm, self.last = nn.LayerNorm(dim, EPSILON), FeedForward(dim, inner, dropout)
        self.norm, self.out = nn.LayerNorm(dim, EPSILON), nn.Linear(dim, vocab_size + end)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        """What the memories of `batch` streams hold that have not begun: (batch, kernel - 1, dim) each."""
        return tuple(self.norm.weight.new_zeros(batch, self.kernel - 1, self.dim) for _ in self.layers)

    def forward(self, embeds: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, vocab_size + end)."""
        scores: Tensor = self.out(self.hidden(embeds, sight))
        return scores

    def hidden(self, embeds: Tensor, sight: Sight) -> Tensor:
        """(batch, tokens, dim) -> the same shape: what the output layer takes."""
        for layer in self.layers:
            embeds, _ = layer(embeds, sight)
        return self._finished(embeds)

    def step(self, embeds: Tensor, sight: Sight, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `forward`, after the tokens that made the state."""
        kept = []
        for layer, left in zip(self.layers, state, strict=True):
            embeds, new = layer(embeds, sight, left)
            kept.append(new)
        return self.out(self._finished(embeds)), tuple(kept)

    def nothing(self, embeds: Tensor) -> Tensor:
        """The scores of no tokens."""
        return embeds.new_zeros(len(embeds), 0, self.vocab_size + self.end)

    def _finished(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.last(self.last_norm(x)))
        return found
