"""A decoder that writes a text token by token, looking at what was heard (Vaswani et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.codecs.s3_layers import sinusoids
from speechkit.nn.masks import valid_mask

UNUSED = -100  # a target that no loss counts


class Writer(nn.Module):
    """What was heard and the tokens so far to the next token; token ``vocab_size`` begins and ends a text.

    Args:
        dim: of what was heard.
        vocab_size: tokens without the end.
        heads: of attention.
        layers: each with attention to the text so far and to all that was heard.
        dropout: in training.
    """

    def __init__(self, dim: int, vocab_size: int, heads: int, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.end = vocab_size
        self.embed = nn.Embedding(vocab_size + 1, dim)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, vocab_size + 1)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)

    def forward(self, heard: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """(batch, time, dim), (batch,) valid steps, (batch, count) tokens so far -> (batch, count, vocab_size + 1)."""
        count = tokens.shape[1]
        x = self.embed(tokens) * self.embed.embedding_dim**0.5
        x = x + sinusoids(count, x.shape[2], x.device).to(x)
        later = torch.ones(count, count, dtype=torch.bool, device=x.device).triu(1)
        silent = ~valid_mask(lengths.clamp(min=1), heard.shape[1])
        for layer in self.layers:
            x = layer(x, heard, tgt_mask=later, memory_key_padding_mask=silent, tgt_is_causal=True)
        return self.out(self.norm(x))

    def losses(self, heard: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, smoothing: float) -> Tensor:
        """Each text's cross entropy, its end included, targets smoothed (Szegedy et al. 2016, section 7): (batch,)."""
        given = F.pad(tokens, (1, 0), value=self.end)
        place, last = torch.arange(given.shape[1], device=tokens.device), token_lengths[:, None]
        wanted = F.pad(tokens, (0, 1)).masked_fill(place == last, self.end).masked_fill(place > last, UNUSED)
        scores = self(heard, lengths, given).float()
        each = F.cross_entropy(
            scores.transpose(1, 2), wanted, ignore_index=UNUSED, reduction="none", label_smoothing=smoothing
        )
        return each.sum(1)

    @torch.no_grad()
    def greedy(self, heard: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest token after each other, at most one for every step that was heard."""
        tokens = torch.full((len(heard), 1), self.end, device=heard.device)
        done = torch.zeros(len(heard), dtype=torch.bool, device=heard.device)
        while tokens.shape[1] <= heard.shape[1] and not bool(done.all()):
            following = self(heard, lengths, tokens)[:, -1].argmax(-1)
            done = done | (following == self.end) | (tokens.shape[1] > lengths)
            tokens = torch.cat([tokens, following.masked_fill(done, self.end)[:, None]], dim=1)
        return [[token for token in row if token != self.end] for row in tokens.tolist()]
