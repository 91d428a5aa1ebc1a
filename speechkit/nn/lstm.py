"""LSTMs in graphs: ONNX's own operator, for the exporter would write out as many steps as its example has."""

import torch
from torch import Tensor, nn


def graph_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """(batch, time, dim) -> (batch, time, hidden) from a state of zeros; while a graph is made, of one direction."""
    y = x.transpose(0, 1)
    for w_in, w_hidden, b_in, b_hidden in lstm.all_weights:
        inputs = (y, *(_reordered(part)[None] for part in (w_in, w_hidden)), _biases(b_in, b_hidden)[None])
        time, batch, size = y.shape[0], y.shape[1], lstm.hidden_size
        y, _, _ = torch.onnx.ops.symbolic_multi_out(
            "LSTM", inputs, {"hidden_size": size}, dtypes=[x.dtype] * 3,
            shapes=[(time, 1, batch, size), (1, batch, size), (1, batch, size)],
        )  # fmt: skip
        y = y[:, 0]
    return y.transpose(0, 1)


def _reordered(x: Tensor) -> Tensor:
    """(4 * hidden, ...): PyTorch's gates i, f, g, o in ONNX's order i, o, f, g."""
    i, f, g, o = x.chunk(4)
    return torch.cat([i, o, f, g])


def _biases(b_in: Tensor, b_hidden: Tensor) -> Tensor:
    return torch.cat([_reordered(b_in), _reordered(b_hidden)])
