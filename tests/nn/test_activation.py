"""Activations per token: the simulated values, a gradient that passes through, and rows split over processes."""

import pytest
import torch
from exactness import DTYPES, adversarial_groups, random_groups, same_bits

from qllm_hf.nn import activation as activation_module
from qllm_hf.nn.activation import fake_quantize_rows, straight_through
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import fake_quantize

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
SPECS = [Spec(bits, PER_ROW, symmetric) for bits in (8, 4) for symmetric in (False, True)]
PAPER = [Spec(bits, PER_ROW, symmetric, paper_exact=True) for bits in (8, 4) for symmetric in (False, True)]


@dtypes
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_training_sees_the_same_values_as_inference(dtype, spec):
    x = torch.cat([random_groups(500, 64).to(dtype), adversarial_groups(90, 64, spec.bits, dtype)])
    with_gradient = fake_quantize_rows(x.clone().requires_grad_(), spec)
    assert same_bits(with_gradient.detach(), fake_quantize_rows(x, spec)).all()
    assert same_bits(fake_quantize_rows(x, spec), fake_quantize(x, spec)).all()


def test_training_sees_the_same_values_where_the_published_code_destroys_a_row():
    x, spec = torch.full((1, 8), 5.3), Spec(8, PER_ROW, paper_exact=True)
    assert same_bits(fake_quantize_rows(x.clone().requires_grad_(), spec).detach(), fake_quantize(x, spec)).all()


def test_gradient_passes_straight_through():
    x = torch.randn(3, 16, requires_grad=True)
    weights = torch.randn(3, 16)
    (fake_quantize_rows(x, Spec(4, PER_ROW)) * weights).sum().backward()
    assert x.grad.equal(weights)


def test_without_a_gradient_nothing_is_recorded():
    quantized = torch.zeros(2)
    assert straight_through(torch.ones(2), quantized) is quantized
    with torch.no_grad():
        assert straight_through(torch.ones(2, requires_grad=True), quantized) is quantized
    assert straight_through(torch.ones(2, requires_grad=True), quantized).requires_grad


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_largest_float16_stays_finite_in_a_split_row(monkeypatch, spec):
    x = torch.tensor([[0.0, 65504.0, 3.0, 4.0]]).half()
    ends = torch.tensor([[[65504.0, 0.0]]]).half()
    monkeypatch.setattr(activation_module.dist, "all_reduce", lambda tensor, op, group: tensor.copy_(ends))
    together = torch.cat([fake_quantize_rows(shard, spec, "the group") for shard in x.split(2, -1)], -1)
    assert same_bits(together, fake_quantize(x, spec)).all()


@dtypes
@pytest.mark.parametrize("spec", SPECS + PAPER, ids=str)
def test_a_row_split_over_processes_has_the_range_of_the_whole_row(monkeypatch, dtype, spec):
    """`all_reduce` is stood in for by what it computes: the maximum over the processes."""
    x = torch.cat([random_groups(50, 64).to(dtype), adversarial_groups(90, 64, spec.bits, dtype)])
    shards = x.split([16, 48], -1)

    def all_reduce(ends, op, group):
        assert (op, group) == (torch.distributed.ReduceOp.MAX, "the group")
        whole = torch.cat([x.unsqueeze(-2).amax(-1, keepdim=True), -x.unsqueeze(-2).amin(-1, keepdim=True)], -1)
        assert (ends <= whole).all()
        ends.copy_(whole)

    monkeypatch.setattr(activation_module.dist, "all_reduce", all_reduce)
    together = torch.cat([fake_quantize_rows(shard, spec, "the group") for shard in shards], -1)
    assert same_bits(together, fake_quantize(x, spec)).all()
    apart = torch.cat([fake_quantize(shard, spec) for shard in shards], -1)
    assert not apart.equal(fake_quantize(x, spec)), "each shard's own range would be another result"
