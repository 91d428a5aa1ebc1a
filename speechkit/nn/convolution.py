"""The Conformer's convolution module, causal or centred."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.linear import Linear

FEW_ROWS = 14  # up to so many, the grouped convolution's start takes longer than plain products


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise, norm, SiLU, pointwise (Gulati et al. 2020, section 2.2)."""

    def __init__(self, dim: int, kernel: int, causal: bool = True, norm: str = "layer_norm", bias: bool = True) -> None:
        super().__init__()
        if norm not in ("layer_norm", "batch_norm"):
            raise ValueError(f"conv norm must be 'layer_norm' or 'batch_norm', got {norm!r}")
        if kernel < 1:
            raise ValueError(f"a convolution's kernel must be at least 1, got {kernel}")
        if not causal and kernel % 2 == 0:
            raise ValueError(f"a centred convolution needs an odd kernel, got {kernel}")
        self.left = kernel - 1 if causal else kernel // 2
        self.right = kernel - 1 - self.left
        self.expand = Linear(dim, 2 * dim, bias=bias)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim, bias=bias)
        self.norm: nn.Module = nn.LayerNorm(dim) if norm == "layer_norm" else nn.BatchNorm1d(dim)
        self.project = Linear(dim, dim, bias=bias)

    def gate(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, time, dim) -> the depthwise convolution's input, zero where `mask` (batch, time, 1) is false."""
        return F.glu(self.expand(x), dim=-1) * mask

    def convolve(self, gated: Tensor) -> Tensor:
        """(batch, left + time + right, dim) -> (batch, time, dim)."""
        x = self._depthwise(gated)
        x = self.norm(x).transpose(1, 2) if isinstance(self.norm, nn.BatchNorm1d) else self.norm(x.transpose(1, 2))
        return self.project(F.silu(x))

    def _depthwise(self, gated: Tensor) -> Tensor:
        """(batch, left + time + right, dim) -> (batch, dim, time)."""
        kernel = self.left + self.right + 1
        rows = gated.shape[0] * (gated.shape[1] - kernel + 1)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or gated.is_cuda or rows > FEW_ROWS:
            return self.depthwise(gated.transpose(1, 2))
        x = (gated.unfold(1, kernel, 1) * self.depthwise.weight[:, 0]).sum(-1)
        return (x if self.depthwise.bias is None else x + self.depthwise.bias).transpose(1, 2)

    def init_state(self, batch: int) -> Tensor:
        """Zeros (batch, kernel - 1, dim): what lies before a stream's start."""
        weight = self.project.weight
        return torch.zeros(batch, self.left, weight.shape[1], dtype=weight.dtype, device=weight.device)

    def step(self, x: Tensor, mask: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """One chunk after `left`, and the left context of the next chunk."""
        gated = torch.cat([left, self.gate(x, mask)], dim=1)
        return self.convolve(gated), gated[:, gated.shape[1] - self.left :]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, time, dim) and (batch, time, 1) bool -> (batch, time, dim)."""
        return self.convolve(F.pad(self.gate(x, mask), (0, 0, self.left, self.right)))
