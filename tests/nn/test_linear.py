"""PackedLinear against the layers it replaces, their weights rounded from outside."""

import copy

import pytest
import torch
from exactness import DTYPES
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from qllm_hf.errors import CheckpointError, ModelError
from qllm_hf.nn import PackedLinear
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import fake_quantize

IN, OUT = 88, 24
LAYERS = {
    "Linear": lambda bias: nn.Linear(IN, OUT, bias=bias),
    "FalconLinear": lambda bias: FalconLinear(IN, OUT, bias=bias),
    "Conv1D": lambda bias: Conv1D(OUT, IN),
}
layers = pytest.mark.parametrize("kind", LAYERS)
specs = pytest.mark.parametrize("spec", [Spec(4, 32), Spec(3, -1, symmetric=True), Spec(8, 0), Spec(2, 128)], ids=str)


def float_layer(kind: str, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Module:
    layer = LAYERS[kind](bias).to(dtype).requires_grad_(False)
    nn.init.normal_(layer.weight, std=0.3)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def packed_layer(layer: nn.Module, spec: Spec, activation: Spec | None = None) -> PackedLinear:
    bias, transposed = layer.bias is not None, isinstance(layer, Conv1D)
    packed = PackedLinear(
        IN, OUT, bias=bias, spec=spec, activation=activation, dtype=layer.weight.dtype, transposed=transposed
    )
    packed.assign_packed("weight", packed.pack(layer.weight.data))
    packed.bias = layer.bias
    return packed


def rounded_layer(layer: nn.Module, spec: Spec) -> nn.Module:
    """A copy with the weight on its grid; groups run along in_features, also where the weight is transposed."""
    layer = copy.deepcopy(layer)
    matrix = layer.weight.data
    layer.weight.data = (
        fake_quantize(matrix.t(), spec).t() if isinstance(layer, Conv1D) else fake_quantize(matrix, spec)
    )
    return layer


def tolerance(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Two orders of summation differ by at most 2 K u32 A, and each result and bias is rounded to its dtype: 4 u A."""
    matrix = layer.weight.double() if isinstance(layer, Conv1D) else layer.weight.double().t()
    magnitudes = x.double().abs() @ matrix.abs() + (0 if layer.bias is None else layer.bias.double().abs())
    return (2 * IN * 2**-24 + 4 * torch.finfo(x.dtype).eps / 2) * magnitudes


@layers
@specs
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_equals_the_layer_with_a_rounded_weight(kind, spec, dtype, bias):
    layer = float_layer(kind, dtype, bias)
    packed, rounded = packed_layer(layer, spec), rounded_layer(layer, spec)
    x = torch.randn(2, 5, IN).to(dtype)
    y = packed(x)
    assert (y.dtype, y.shape) == (dtype, (2, 5, OUT))
    assert ((y.double() - rounded(x).double()).abs() <= tolerance(x, rounded)).all()
    unrounded_differs = ((layer(x).double() - rounded(x).double()).abs() > tolerance(x, rounded)).any()
    assert unrounded_differs or (spec.bits, dtype) == (8, torch.bfloat16), "the tolerance is not too wide"
    assert packed.weight.equal(rounded.weight)
    assert packed.weight.shape == layer.weight.shape


@layers
@pytest.mark.parametrize("a_symmetric", [False, True])
def test_activations_are_rounded_per_token(kind, a_symmetric):
    layer, activation = float_layer(kind), Spec(8, PER_ROW, a_symmetric)
    packed, rounded = packed_layer(layer, Spec(4, 32), activation), rounded_layer(layer, Spec(4, 32))
    x = torch.randn(2, 5, IN) * torch.tensor([0.01, 1, 100, 1, 1]).reshape(5, 1)
    on_grid = fake_quantize(x, activation)
    assert ((packed(x) - rounded(on_grid)).abs() <= tolerance(on_grid, rounded)).all()
    assert ((packed(x) - rounded(x)).abs() > tolerance(x, rounded)).any()
    assert packed(x)[0, :1].allclose(packed(x[0, :1])), "a token does not see the others"


@layers
def test_gradient_of_the_input(kind):
    """That of the rounded layer: what rounding did to the input passes straight through, the weight gets none."""
    layer = float_layer(kind)
    upstream = torch.randn(2, 5, OUT)
    for activation in (None, Spec(8, PER_ROW)):
        packed, rounded = packed_layer(layer, Spec(4, 32), activation), rounded_layer(layer, Spec(4, 32))
        x = torch.randn(2, 5, IN, requires_grad=True)
        y = packed(x)
        y.backward(upstream)
        with torch.no_grad():  # without a gradient a kernel may run, with another order of summation
            assert ((y - packed(x)).abs() <= tolerance(x, rounded)).all()
        reference = x.detach().clone().requires_grad_()
        rounded(reference).backward(upstream)
        torch.testing.assert_close(x.grad, reference.grad)
        assert all(parameter.grad is None for parameter in packed.parameters())
        assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_is_what_other_code_looks_for():
    packed = packed_layer(float_layer("Linear"), Spec(3, 32), Spec(8, PER_ROW))
    assert isinstance(packed, nn.Linear)
    assert (packed.in_features, packed.out_features) == (IN, OUT)
    assert repr(packed) == f"PackedLinear({IN}, {OUT}, w=3, group_size=32, a=8)"
    assert packed.packed_names() == ["weight_packed", "weight_scale", "weight_zero_point"]


def test_state_dict_holds_the_packed_parts_only():
    packed = packed_layer(float_layer("Linear", torch.float16), Spec(4, 32))
    state = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in packed.state_dict().items()}
    assert state == {
        "weight_packed": ((OUT, IN // 4), torch.int16),
        "weight_scale": ((OUT, 3), torch.float16),
        "weight_zero_point": ((OUT, 3), torch.uint8),
        "bias": ((OUT,), torch.float16),
    }
    symmetric = packed_layer(float_layer("Linear", bias=False), Spec(4, 32, symmetric=True))
    assert list(symmetric.state_dict()) == ["weight_packed", "weight_scale"]


def test_state_dict_round_trip():
    packed = packed_layer(float_layer("Linear"), Spec(4, 32))
    empty = PackedLinear(IN, OUT, bias=True, spec=Spec(4, 32))
    empty.load_state_dict(packed.state_dict())
    x = torch.randn(3, IN)
    assert empty(x).equal(packed(x))


def test_deepcopy_is_independent():
    packed = packed_layer(float_layer("Linear"), Spec(4, 32))
    twin = copy.deepcopy(packed)
    x = torch.randn(3, IN)
    before = packed(x)
    assert twin(x).equal(before)
    twin.weight_scale.data.mul_(2)
    assert packed(x).equal(before)
    assert not twin(x).equal(before)


def test_cast_moves_scales_but_no_codes():
    packed = packed_layer(float_layer("Linear"), Spec(4, 32))
    words = packed.weight_packed.data.clone()
    packed.bfloat16()
    assert (packed.weight_packed.dtype, packed.weight_scale.dtype) == (torch.int16, torch.bfloat16)
    assert packed.weight_packed.equal(words)
    assert packed(torch.randn(2, IN).bfloat16()).dtype == torch.bfloat16


def test_weight_is_the_placeholder_while_loading():
    packed = packed_layer(float_layer("Conv1D"), Spec(4, 32))
    packed.add_placeholder(torch.bfloat16)
    assert packed.weight.is_meta
    assert (packed.weight.shape, packed.weight.dtype) == ((IN, OUT), torch.bfloat16)


@layers
@pytest.mark.parametrize("activation", [None, Spec(8, PER_ROW)], ids=["float inputs", "a8"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_input_is_scaled_and_then_put_in_order(kind, activation, scaled):
    """Column k of the packed row belongs to input order[k], whose scale is scale[order[k]]."""
    layer, spec, order = float_layer(kind), Spec(4, 32), torch.randperm(IN)
    matrix = layer.weight.data.t() if isinstance(layer, Conv1D) else layer.weight.data
    bias, transposed = layer.bias is not None, isinstance(layer, Conv1D)
    packed = PackedLinear(
        IN, OUT, bias=bias, spec=spec, activation=activation, transposed=transposed,
        input_scale=scaled, input_order=True,
    )  # fmt: skip
    packed.assign_packed("weight", PackedTensor.encode_weight(matrix[:, order].contiguous(), spec))
    packed.assign_input_order(order.int())
    packed.bias = layer.bias
    scale = torch.rand(IN) + 0.5 if scaled else torch.ones(IN)
    if scaled:
        packed.assign_input_scale(scale)
    meant = torch.empty(OUT, IN)
    for place, column in enumerate(order.tolist()):
        meant[:, column] = fake_quantize(matrix[:, order].contiguous(), spec)[:, place]
    x = torch.randn(2, 5, IN)
    on_grid = x * scale if activation is None else fake_quantize(x * scale, activation)
    rounded = nn.Linear(IN, OUT, bias=bias)
    rounded.weight.data, rounded.bias = meant, layer.bias
    for _ in range(3):  # what the first call prepares serves the others
        assert ((packed(x) - rounded(on_grid)).abs() <= tolerance(on_grid, rounded)).all()
    assert packed.float_matrix().equal(meant * scale)
    assert packed.weight.equal((meant * scale).t() if transposed else meant * scale)
    plain = copy.deepcopy(packed)
    plain.input_order = None
    assert ((plain(x) - rounded(on_grid)).abs() > tolerance(on_grid, rounded)).any(), "the order matters"
    with_gradient, reference = (x.clone().requires_grad_() for _ in range(2))
    packed(with_gradient).sum().backward()
    (rounded(reference * scale)).sum().backward()
    torch.testing.assert_close(with_gradient.grad, reference.grad)
    assert packed.packed_names()[3:] == ["input_scale"] * scaled + ["input_order"]


@pytest.mark.parametrize("wrong", [-1, IN])
def test_nothing_is_read_outside_of_the_input(wrong):
    packed = PackedLinear(IN, OUT, bias=False, spec=Spec(4, 32), input_order=True)
    packed.assign_packed("weight", packed.pack(torch.randn(OUT, IN)))
    packed.assign_input_order(torch.full((IN,), wrong, dtype=torch.int32))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        packed(torch.randn(1, IN))


def test_what_was_never_loaded_says_so():
    packed = packed_layer(float_layer("Linear"), Spec(4, 32))
    del packed._parameters["weight_scale"]
    with pytest.raises(CheckpointError, match="PackedLinear: the packed weight 'weight' was never loaded"):
        packed(torch.randn(1, IN))


def test_tensor_cannot_be_assigned_as_weight():
    packed = packed_layer(float_layer("Linear"), Spec(4, 32))
    with pytest.raises(ModelError, match=r"this weight is packed and read-only\. Call model\.dequantize\(\) first"):
        packed.weight = torch.zeros(OUT, IN)


def test_parameter_cannot_be_assigned_as_weight():
    packed = packed_layer(float_layer("Linear"), Spec(4, 32))
    with pytest.raises(ModelError, match="this weight is packed and read-only"):
        packed.weight = nn.Parameter(torch.zeros(OUT, IN))
