"""Multi-head attention with relative positions (Transformer-XL), whole or over a cache of keys and values."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.linear import Linear

MASKED = -10000.0  # finite, so that a row with nothing to see stays finite; exp underflows to zero


def relative_positions(first: int, count: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances first, first - 1, ...: (count, dim), sine on even and cosine on odd channels."""
    distance = torch.arange(first, first - count, -1, device=like.device, dtype=torch.float64)
    rate = torch.exp(torch.arange(0, dim, 2, device=like.device, dtype=torch.float64) * (-math.log(10000.0) / dim))
    angle = distance[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


def relative_shift(scores: Tensor, keys: int) -> Tensor:
    """(..., queries, queries + keys - 1) by falling distance -> (..., queries, keys) (Dai et al. 2019, appendix B)."""
    queries, distances = scores.shape[-2:]
    if isinstance(queries, torch.SymInt):  # of a graph that may have one: an entry before each row does the same
        return F.pad(scores, (1, 0)).flatten(-2)[..., queries:].unflatten(-1, (queries, distances))[..., :keys]
    if queries == 1:
        return scores[..., :keys]
    # Row i begins at distance queries - 1 - i: with rows one entry shorter, every row begins at the first entry.
    flat = scores.flatten(-2)[..., queries - 1 : queries * distances - 1]
    return flat.unflatten(-1, (queries, distances - 1))[..., :keys]


class RelativeAttention(nn.Module):
    """Scores ``((q + u) k + (q + v) p) / sqrt(d)`` with learned biases u, v and projected sinusoids p."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"the attention's dropout must be from 0 to 1, got {dropout}")
        self.heads, self.head_dim, self.dropout = heads, dim // heads, dropout
        self.qkv = Linear(dim, 3 * dim, bias=bias)
        self.out = Linear(dim, dim, bias=bias)
        self.position = Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.position_bias = nn.Parameter(torch.zeros(heads, self.head_dim))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, time, dim) -> query, key, value, each (batch, heads, time, head_dim)."""
        q, k, v = self.by_head(self.qkv(x), 3)
        return q, k, v

    def by_head(self, x: Tensor, parts: int) -> Tensor:
        """(batch, time, parts * dim) -> (parts, batch, heads, time, head_dim)."""
        return x.unflatten(2, (parts, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)

    def positions(self, first: int, count: int) -> Tensor:
        """Projected sinusoids of the distances first, first - 1, ...: (heads, head_dim, count)."""
        weight = self.position.weight
        return self.project_positions(relative_positions(first, count, weight.shape[1], weight))

    def project_positions(self, sinusoids: Tensor) -> Tensor:
        """(count, dim) -> (heads, head_dim, count)."""
        return self.position(sinusoids).view(-1, self.heads, self.head_dim).permute(1, 2, 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """Queries over keys; `bias` (batch, 1, queries, keys) is 0 where a query may look and MASKED elsewhere."""
        scale = 1 / math.sqrt(self.head_dim)
        content = q + self.content_bias[:, None]
        by_position = (q + self.position_bias[:, None]) @ positions
        bias = relative_shift(by_position, k.shape[2]) * scale + bias
        dropout = self.dropout if self.training else 0.0
        return self.out(attended(content, k, v, bias.to(content.dtype), dropout).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, bias: Tensor, sinusoids: Tensor) -> Tensor:
        """Arguments as of `forward` -> (batch, heads, queries, keys), which its fused attention never holds."""
        query, key, _ = self.project(x)
        by_position = (query + self.position_bias[:, None]) @ self.project_positions(sinusoids)
        scores = (query + self.content_bias[:, None]) @ key.mT + relative_shift(by_position, key.shape[2])
        return torch.softmax(scores / math.sqrt(self.head_dim) + bias, -1)

    def forward(self, x: Tensor, bias: Tensor, sinusoids: Tensor) -> Tensor:
        """(batch, time, dim), `attention_bias`, sinusoids from time - 1 down to 1 - time -> (batch, time, dim)."""
        q, k, v = self.project(x)
        return self.attend(q, k, v, self.project_positions(sinusoids), bias)


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """Queries (batch, heads, time, head_dim) over keys, with a bias of the scores -> the shape of the queries."""
    if torch.compiler.is_exporting():  # graphs may have any number of queries, which the fused attention will not
        return (q / math.sqrt(q.shape[-1]) @ k.mT + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, queries, keys) bool -> (batch, 1, queries, keys), 0 where true and MASKED elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, MASKED)[:, None]
