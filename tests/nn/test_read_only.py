"""The dequantized copy that `layer.weight` gives: reads as a tensor, and no write to it is lost without a word."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qllm_hf.errors import ModelError
from qllm_hf.nn import PackedLinear
from qllm_hf.nn.read_only import ReadOnlyTensor
from qllm_hf.scheme import Spec


@pytest.fixture(params=["Linear", "Conv1D"])
def layer(request) -> PackedLinear:
    packed = PackedLinear(32, 16, bias=False, spec=Spec(4, 32), transposed=request.param == "Conv1D")
    source = Conv1D(16, 32) if packed.transposed else nn.Linear(32, 16)
    packed.assign_packed("weight", packed.pack(source.weight.data))
    return packed


def iadd(weight):
    weight += 1


def iadd_data(weight):
    weight.data += 1


def imul(weight):
    weight *= 2


def set_item(weight):
    weight[0] = 0


def set_item_of_data(weight):
    weight.data[0, 1] = 0


def scale_item(weight):
    weight[0] *= 2


def set_data(weight):
    weight.data = torch.zeros(16, 32)


WRITES = {
    "add_": lambda weight: weight.add_(1),
    "mul_": lambda weight: weight.mul_(2),
    "copy_": lambda weight: weight.copy_(torch.zeros(weight.shape)),
    "zero_": lambda weight: weight.zero_(),
    "clamp_": lambda weight: weight.clamp_(0),
    "data.add_": lambda weight: weight.data.add_(1),
    "detach_": lambda weight: weight.detach_(),
    "t_": lambda weight: weight.t_(),
    "index_copy_": lambda weight: weight.index_copy_(0, torch.tensor([0]), torch.zeros(1, weight.shape[1])),
    "masked_fill_": lambda weight: weight.masked_fill_(weight > 0, 0.0),
    "+=": iadd,
    "data +=": iadd_data,
    "*=": imul,
    "[0] =": set_item,
    "data[0, 1] =": set_item_of_data,
    "[0] *=": scale_item,
    "data =": set_data,
    "init.zeros_": lambda weight: nn.init.zeros_(weight),
    "init.xavier_uniform_": lambda weight: nn.init.xavier_uniform_(weight),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_raises(layer, write):
    before = layer.weight.clone()
    with pytest.raises(ModelError, match=r"this weight is packed and read-only .*Call model\.dequantize\(\) first"):
        WRITES[write](layer.weight)
    assert layer.weight.equal(before)


# As llm-awq, GPTQ and others write to weights.
LOST = {
    "[-4:].div_": lambda weight: weight[-4:].div_(2),
    "data[-4:].div_": lambda weight: weight.data[-4:].div_(2),
    "view.mul_": lambda weight: weight.view(-1).mul_(2),
    "t().mul_": lambda weight: weight.t().mul_(2),
    "detach().mul_": lambda weight: weight.detach().mul_(2),
    "chunk": lambda weight: weight.chunk(2)[0].zero_(),
    "out=": lambda weight: torch.mul(torch.ones(weight.shape), 2, out=weight),
    "init.normal_": lambda weight: nn.init.normal_(weight),
    "init.uniform_": lambda weight: nn.init.uniform_(weight),
    "init.constant_": lambda weight: nn.init.constant_(weight, 1.0),
    "init.kaiming_uniform_": lambda weight: nn.init.kaiming_uniform_(weight),
}


@pytest.mark.parametrize("write", LOST)
def test_writes_by_a_detour_raise(write):
    packed = PackedLinear(32, 16, bias=False, spec=Spec(4, 32))
    packed.assign_packed("weight", packed.pack(torch.randn(16, 32)))
    with pytest.raises(ModelError, match="this weight is packed and read-only"):
        LOST[write](packed.weight)


def test_reads_give_ordinary_tensors(layer):
    weight = layer.weight
    plain = weight.clone()
    assert type(weight) is ReadOnlyTensor
    assert type(plain) is torch.Tensor
    results = {
        "product": torch.randn(3, 16) @ (weight.t() if layer.transposed else weight),
        "sum": weight + weight,
        "cast": weight.bfloat16(),
        "norm": weight.norm(),
        "linear": nn.functional.linear(torch.ones(2, weight.shape[1]), weight),
        "stack": torch.stack([weight, plain]),
        "reversed": 1 - weight,
    }
    assert {name: type(result) for name, result in results.items()} == dict.fromkeys(results, torch.Tensor)
    assert results["sum"].equal(plain + plain)
    assert weight[0].equal(plain[0])
    results["sum"].add_(1)  # a result may be written to


def test_reads_of_attributes(layer):
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device.type) == (layer.weight.clone().shape, torch.float32, "cpu")
    assert (weight.requires_grad, weight.is_meta, weight.grad, weight.ndim) == (False, False, None, 2)
    assert weight.T.equal(weight.clone().T)
    assert weight.data.equal(weight.clone())
    assert isinstance(weight.data, ReadOnlyTensor)
    assert weight.tolist() == weight.clone().tolist()
    assert weight.numpy().shape == tuple(weight.shape)


def test_requires_grad_may_be_asked_for(layer):
    """peft does so for every parameter; it changes no value."""
    layer.weight.requires_grad_(False)


def test_copies_can_be_written(layer):
    duplicate = layer.weight.clone()
    assert duplicate.equal(layer.weight)
    duplicate.add_(1)
    assert not duplicate.equal(layer.weight)


def test_deepcopy(layer):
    assert copy.deepcopy(layer.weight).equal(layer.weight)


def test_initialization_by_transformers_passes_it_by(layer):
    """_init_weights of a model must neither fill the copy nor fail on it."""
    assert layer.weight._is_hf_initialized
