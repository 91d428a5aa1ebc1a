"""The transducer's prediction network: an LSTM over the tokens so far."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class PredictorState(NamedTuple):
    """LSTM state."""

    hidden: Tensor  # (batch, layers, dim)
    cell: Tensor  # (batch, layers, dim)


class Predictor(nn.Module):
    """Embedding and LSTM (Graves 2012, section 2.1); the start is a zero vector, as is the blank's embedding."""

    def __init__(self, vocab_size: int, dim: int = 640, layers: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        if not 1 <= layers <= 100:
            raise ValueError(f"a predictor has 1 to 100 layers, got {layers}")
        if min(vocab_size, dim) < 1:
            raise ValueError(f"vocab_size and dim must be at least 1, got {(vocab_size, dim)}")
        self.blank, self.dim, self.layers = vocab_size, dim, layers
        self.embedding = nn.Embedding(vocab_size + 1, dim, padding_idx=vocab_size)
        self.lstm = nn.LSTM(dim, dim, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self._open_forget_gates()

    def _open_forget_gates(self) -> None:
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                gate = slice(self.dim, 2 * self.dim)
                parameter.data[gate].fill_(1.0 if name.startswith("bias_ih") else 0.0)

    def init_state(self, batch: int) -> PredictorState:
        """State before the first token."""
        zeros = self.embedding.weight.new_zeros(batch, self.layers, self.dim)
        return PredictorState(zeros, zeros.clone())

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """(batch,) last tokens, blank at the start -> (batch, dim) and the next state."""
        hidden, cell = (part.transpose(0, 1).contiguous() for part in state)
        out, (hidden, cell) = self.lstm(self.embedding(tokens)[:, None], (hidden, cell))
        return self.dropout(out[:, 0]), PredictorState(hidden.transpose(0, 1), cell.transpose(0, 1))

    def forward(self, targets: Tensor) -> Tensor:
        """(batch, tokens) -> (batch, tokens + 1, dim); entry u has seen u tokens."""
        start = (
            torch.full_like(targets[:, :1], self.blank)
            if targets.shape[1]
            else targets.new_full((len(targets), 1), self.blank)
        )
        out, _ = self.lstm(self.embedding(torch.cat([start, targets], dim=1)))
        return self.dropout(out)
