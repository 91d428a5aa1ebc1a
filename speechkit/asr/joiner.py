"""The transducer's joint network."""

from torch import Tensor, nn
from torch.nn import functional as F


class Joiner(nn.Module):
    """``W relu(E enc + P pred)``: logits over the vocabulary and the blank, which is last (Graves et al. 2013)."""

    def __init__(self, encoder_dim: int, predictor_dim: int, dim: int, vocab_size: int, dropout: float = 0.2) -> None:
        super().__init__()
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

    def join(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Projected (..., dim) and (..., dim), broadcast -> logits (..., vocab_size + 1)."""
        return self.out(self.dropout(F.relu(encoder + predictor)))

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(..., encoder_dim) and (..., predictor_dim), broadcast -> logits (..., vocab_size + 1)."""
        return self.join(self.project_encoder(encoder), self.project_predictor(predictor))
