"""What a Paraformer is compared with: a Transformer decoder of its size that says one token after another."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """Self-attention, attention to the encoder and a feed-forward network, each normalised and beside its input."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.key_value, self.joined = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def split(self, x: Tensor) -> Tensor:
        """(rows, time, dim) -> (rows, heads, time, dim / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def see(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's steps, which are computed once."""
        key, value = self.key_value(memory).chunk(2, -1)
        return self.split(key), self.split(value)

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(rows, 1, dim) after (rows, heads, tokens, dim / heads) keys and values."""
        q, k, v = (self.split(part) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        past = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.out(F.scaled_dot_product_attention(q, *past).transpose(1, 2).flatten(2))
        q = self.split(self.query(self.norm2(x)))
        key, value = (part.expand(len(x), -1, -1, -1) for part in seen)
        x = x + self.joined(F.scaled_dot_product_attention(q, key, value).transpose(1, 2).flatten(2))
        return x + self.narrow(F.relu(self.widen(self.norm3(x)))), past


class Autoregressive(nn.Module):
    """Token by token, with a cache of keys and values.

    Args:
        vocab_size, dim, layers, heads, inner: sizes, as of `SanmDecoder`.
    """

    def __init__(self, vocab_size: int, dim: int = 512, layers: int = 16, heads: int = 4, inner: int = 2048) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(vocab_size, dim), nn.LayerNorm(dim), nn.Linear(dim, vocab_size)
        self.layers = nn.ModuleList(Layer(dim, heads, inner) for _ in range(layers))

    def say(self, memory: Tensor, tokens: int, beam: int) -> Tensor:
        """(1, steps, dim) encoder steps -> the best of `beam` paths of so many tokens: (tokens,)."""
        seen = [layer.see(memory) for layer in self.layers]
        empty = seen[0][0][:, :, :0]
        past = [(empty, empty) for _ in self.layers]
        paths, scores = memory.new_zeros(1, 1, dtype=torch.int64), memory.new_zeros(1)
        for _ in range(tokens):
            x = self.embed(paths[:, -1:])
            for i, layer in enumerate(self.layers):
                x, past[i] = layer.step(x, past[i], seen[i])
            total = scores[:, None] + self.out(self.norm(x))[:, 0].log_softmax(-1)
            scores, index = total.flatten().topk(beam)
            rows = index // total.shape[1]
            paths = torch.cat([paths[rows], (index % total.shape[1])[:, None]], 1)
            if beam > 1:
                past = [(key[rows], value[rows]) for key, value in past]
        return paths[0, 1:]
