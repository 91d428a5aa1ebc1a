"""The convolution module in steps is the convolution module over the whole; few rows change nothing."""

import random

import pytest
import torch
from torch import Tensor, nn

from speechkit.nn.convolution import FEW_ROWS, ConvolutionModule

DIM = 6


def _module(kernel: int = 5, causal: bool = True, norm: str = "layer_norm", bias: bool = True) -> ConvolutionModule:
    module = ConvolutionModule(DIM, kernel, causal, norm, bias).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    if isinstance(module.norm, nn.BatchNorm1d):
        nn.init.normal_(module.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(module.norm.running_var, 0.3, 3.0)  # type: ignore[arg-type]
    return module.eval()


def _input(batch: int, time: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, time, DIM, dtype=torch.double), torch.rand(batch, time, 1) < 0.8


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm"])
@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_random_cuts_equal_the_whole(kernel: int, norm: str, bias: bool) -> None:
    module = _module(kernel, norm=norm, bias=bias)
    for _ in range(5):
        x, mask = _input(2, 24)
        left, outputs, start = module.init_state(2), [], 0
        while start < 24:
            piece = slice(start, start + random.randint(1, 9))
            y, left = module.step(x[:, piece], mask[:, piece], left)
            outputs.append(y)
            start = piece.stop
        torch.testing.assert_close(torch.cat(outputs, dim=1), module(x, mask))


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, FEW_ROWS), (FEW_ROWS, 1), (2, FEW_ROWS // 2), (3, FEW_ROWS)])
def test_few_rows_equal_the_grouped_convolution(batch: int, time: int, bias: bool) -> None:
    module = _module(bias=bias)
    gated = torch.randn(batch, time + module.left, DIM, dtype=torch.double)
    torch.testing.assert_close(module._depthwise(gated), module.depthwise(gated.transpose(1, 2)))


@torch.no_grad()
def test_the_grouped_convolution_is_left_alone_for_few_rows() -> None:
    module = _module()
    rows: list[int] = []
    module.depthwise.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[2]))
    for time in (FEW_ROWS, FEW_ROWS + 1):
        module(*_input(1, time))
    assert rows == [FEW_ROWS + 1]


@torch.no_grad()
@pytest.mark.parametrize(("causal", "sees"), [(True, [4, 5, 6, 7, 8]), (False, [2, 3, 4, 5, 6])])
def test_an_input_reaches_its_kernel_alone(causal: bool, sees: list[int]) -> None:
    module = _module(causal=causal)
    x = torch.randn(1, 20, DIM, dtype=torch.double)
    mask = torch.ones(1, 20, 1, dtype=torch.bool)
    changed = x.clone()
    changed[:, 4] += 1
    assert (module(changed, mask) != module(x, mask)).any(2)[0].nonzero()[:, 0].tolist() == sees


@torch.no_grad()
def test_masked_inputs_count_as_zero() -> None:
    module = _module()
    x, mask = _input(2, 24)
    torch.testing.assert_close(module(x, mask), module(torch.where(mask, x, torch.randn_like(x)), mask))


def test_what_is_no_convolution_module_is_refused() -> None:
    with pytest.raises(ValueError, match="'layer_norm' or 'batch_norm', got 'group_norm'"):
        ConvolutionModule(DIM, 5, norm="group_norm")
    with pytest.raises(ValueError, match="odd kernel, got 4"):
        ConvolutionModule(DIM, 4, causal=False)
    with pytest.raises(ValueError, match="kernel must be at least 1, got 0"):
        ConvolutionModule(DIM, 0)
