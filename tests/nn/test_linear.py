"""The linear layer with weights laid out for few rows: the same numbers, from the weights as they are now."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speechkit.nn.linear import Linear, packs


def _layer(inputs: int = 24, outputs: int = 40, bias: bool = True) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 7), (1, 0), (2, 1, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (40, 24), (300, 310)])
def test_inference_equals_the_ordinary_layer(inputs: int, outputs: int, shape: tuple[int, ...], bias: bool) -> None:
    layer = _layer(inputs, outputs, bias)
    x = torch.randn(*shape, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        turned = torch.randn(inputs, 5, 3).permute(2, 1, 0)
        expected = F.linear(turned, layer.weight, layer.bias)
        torch.testing.assert_close(layer(turned), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not packs(), reason="this PyTorch has no packed linear layers")
def test_the_copy_is_made_once_and_again_when_weights_change() -> None:
    layer, x = _layer(), torch.randn(1, 5, 24)
    with torch.no_grad():
        layer(x)
        first = layer.copy("blocked")
        layer(x)
        assert layer.copy("blocked") is first
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        layer.load_state_dict({name: torch.ones_like(value) for name, value in layer.state_dict().items()})
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        layer.weight.data += 1  # unseen until the mode is set
        layer.eval()
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_gradients_double_precision_and_autocast_go_the_ordinary_way() -> None:
    layer, x = _layer(), torch.randn(2, 3, 24)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert layer.double()(x.double()).dtype == torch.double
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer.float()(x).dtype == torch.bfloat16
    assert layer._copies is None


def test_copies_are_neither_saved_nor_pickled() -> None:
    layer, x = _layer(), torch.randn(1, 2, 24)
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other._copies is None
            torch.testing.assert_close(other(x), expected)
    assert layer.state_dict().keys() == nn.Linear(24, 40).state_dict().keys()


def test_export_sees_an_ordinary_layer() -> None:
    with torch.no_grad():
        program = torch.export.export(_layer(), (torch.randn(2, 3, 24),))
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function"} == {"aten.linear.default"}
