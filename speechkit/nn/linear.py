"""Linear layers that read their weights in the order that fits few rows, where a CPU runs them for inference."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_ROWS = 4  # oneDNN takes longer for fewer
FEW = 1 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2  # rows that are multiplied one by one
NARROW = 256  # input features, up to which the transpose is the better layout for so few rows


class Linear(nn.Linear):
    """`nn.Linear`, with its weights copied to a better layout at the first fp32 inference on a CPU.

    A chunk of a stream is a few rows, so that its time is the time to read the weights, and PyTorch's layout is not the
    one to read them in. Milliseconds on one thread of an AMD EPYC (512 to 2048 features, torch 2.11) for 1, 2, 4, 7 and
    14 rows: 0.40, 0.64, 0.51, 0.66, 0.80; in oneDNN's blocked layout, with four rows at least: 0.28, 0.28, 0.28, 0.33,
    0.45; the transpose, for a single row: 0.22, or the weights themselves where there are no more outputs than inputs.
    (256 to 1024 features and 2 rows: 0.16 in PyTorch's, 0.14 in oneDNN's layout, 0.08 transposed.)

    Those are of a CPU with AVX-512. With AVX2 alone two rows are still few: 0.83 in PyTorch's, 0.92 in oneDNN's layout
    and 0.53 transposed (512 to 2048 features); 0.59, 0.83 and 0.96 (2048 to 512).

    A copy takes as much memory as the weights. It is made when first needed, and anew where weights were changed, other
    than through `.data` since the last call of `train()` or `eval()`; it is not pickled and no part of the state dict.
    Gradients, autocast, compilation and export go the ordinary way.
    """

    _copies: dict[str, Tensor] | None = None
    _source: tuple[int, int] = (0, 0)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or input.device.type != "cpu"
            or not input.dtype == self.weight.dtype == torch.float32
            or torch.is_autocast_enabled("cpu")
            or not packs()
        ):
            return F.linear(input, self.weight, self.bias)
        rows = input.numel() // self.in_features
        wider = self.in_features < self.out_features
        if wider and (rows <= FEW or (rows < FEWEST_ROWS and self.in_features <= NARROW)):
            return F.linear(input, self.copy("transposed"), self.bias)
        if rows <= FEW:
            return F.linear(input, self.weight, self.bias)
        if rows >= FEWEST_ROWS:
            return _blocked(input, self.copy("blocked"), self.bias)
        x = input.reshape(rows, self.in_features)
        x = _blocked(torch.cat([x, x]), self.copy("blocked"), self.bias)[:rows]
        return x.view(*input.shape[:-1], self.out_features)

    def copy(self, layout: str) -> Tensor:
        """The weights as they are now, ``blocked`` or ``transposed`` in memory."""
        weight = self.weight
        source = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        copies = self._copies
        if copies is None or self._source != source:
            copies, self._source = {}, source
            self._copies = copies
        if layout not in copies:
            weight = weight.detach()
            turned = layout == "transposed"
            copies[layout] = weight.t().contiguous().t() if turned else torch.ops.mkldnn._reorder_linear_weight(weight)
        return copies[layout]

    def train(self, mode: bool = True) -> "Linear":
        """As everywhere; the copies are dropped."""
        self._copies = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_copies"}


@functools.cache
def packs() -> bool:
    """Whether this PyTorch has oneDNN's blocked layout, under private names that may change, and it computes right."""
    x = torch.arange(40.0).view(5, 8) / 8
    weight = torch.arange(48.0).view(6, 8) / 48
    try:
        return torch.allclose(_blocked(x, torch.ops.mkldnn._reorder_linear_weight(weight), None), F.linear(x, weight))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _blocked(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
