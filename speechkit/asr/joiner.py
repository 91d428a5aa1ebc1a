"""The transducer's joint network."""

import math

from torch import Tensor, nn
from torch.nn import functional as F


class Joiner(nn.Module):
    """``W relu(E enc + P pred)``: logits over the vocabulary and the blank, which is last (Graves et al. 2013)."""

    def __init__(self, encoder_dim: int, predictor_dim: int, dim: int, vocab_size: int, dropout: float = 0.2) -> None:
        super().__init__()
        if min(encoder_dim, predictor_dim, dim, vocab_size) < 1:
            sizes = encoder_dim, predictor_dim, dim, vocab_size
            raise ValueError(f"encoder_dim, predictor_dim, dim and vocab_size must be at least 1, got {sizes}")
        self.encoder = nn.Linear(encoder_dim, dim)
        self.predictor = nn.Linear(predictor_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, vocab_size + 1)

    def project_encoder(self, encoder: Tensor) -> Tensor:
        """(..., encoder_dim) -> (..., dim)."""
        return self.encoder(encoder)

    def project_predictor(self, predictor: Tensor) -> Tensor:
        """(..., predictor_dim) -> (..., dim)."""
        return self.predictor(predictor)

    def join(self, encoder: Tensor, predictor: Tensor, multiple: int = 1) -> Tensor:
        """Projected (..., dim) and (..., dim), broadcast -> logits (..., vocab_size + 1).

        With `multiple` minus infinities follow, up to a multiple of it: a GPU's matrix units want multiples of 8.
        """
        x, spare = self.dropout(F.relu(encoder + predictor)), -self.out.out_features % multiple
        if not spare:
            return self.out(x)
        return F.linear(x, F.pad(self.out.weight, (0, 0, 0, spare)), F.pad(self.out.bias, (0, spare), value=-math.inf))

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(..., encoder_dim) and (..., predictor_dim), broadcast -> logits (..., vocab_size + 1)."""
        return self.join(self.project_encoder(encoder), self.project_predictor(predictor))
