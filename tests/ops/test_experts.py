"""The product of tokens with their experts, looped in torch and as the one operator that a compiled graph sees."""

import pytest
import torch

from qllm_hf.errors import ConfigError
from qllm_hf.ops import Request, expert_product, linear
from qllm_hf.ops import experts as experts_module
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import PER_ROW, Spec

ACTIVATIONS = [None, Spec(8, PER_ROW), Spec(4, PER_ROW, symmetric=True)]
SPECS = [Spec(4, 32), Spec(3, PER_ROW, symmetric=True), Spec(8, 0), Spec(4, 32, paper_exact=True)]


def arguments(spec: Spec, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor, PackedTensor]:
    return torch.randn(tokens, 64), torch.randint(4, (tokens,)), PackedTensor.encode(torch.randn(5, 12, 64), spec)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_row_meets_its_own_expert(spec, activation):
    x, chosen, weight = arguments(spec)
    y = expert_product(x, chosen, weight, activation)
    rows = [linear(row, weight.part(expert), None, activation) for row, expert in zip(x, chosen.tolist(), strict=True)]
    torch.testing.assert_close(y, torch.stack(rows))
    assert not y.allclose(expert_product(x, (chosen + 1) % 4, weight, activation))


@pytest.mark.parametrize("outside", [5, 6, -1])
def test_rows_of_other_processes_are_zero(outside):
    x, chosen, weight = arguments(SPECS[0])
    chosen[3] = outside
    y = expert_product(x, chosen, weight, None)
    assert (y.abs().amax(-1) == 0).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_rows_of_x_for_several_experts(activation):
    x, chosen, weight = arguments(SPECS[0], tokens=12)
    y = expert_product(x[:4], chosen, weight, activation)
    torch.testing.assert_close(y, expert_product(x[:4].repeat_interleave(3, 0), chosen, weight, activation))
    assert not y.allclose(expert_product(x[:4].repeat(3, 1), chosen, weight, activation))


def test_no_rows():
    x, chosen, weight = arguments(SPECS[0], tokens=0)
    assert expert_product(x, chosen, weight, None).shape == (0, 12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_operator_of_compiled_graphs_gives_the_same(monkeypatch, spec, activation):
    x, chosen, weight = arguments(spec)
    calls = []
    opaque = experts_module._opaque
    monkeypatch.setattr(experts_module, "_opaque", lambda *given: calls.append(given) or opaque(*given))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    y = expert_product(x, chosen, weight, activation)
    monkeypatch.undo()
    assert y.equal(expert_product(x, chosen, weight, activation))
    torch.library.opcheck(opaque, calls[0], test_utils=("test_schema", "test_faketensor"))


def test_loop_runs_on_the_cpu_and_says_why():
    found = experts_module.resolve(Request("cpu", torch.float32, SPECS[0], None))
    assert found.chosen.name == "loop"
    assert found.refused[0][0] == "triton"
    assert found.refused[0][1].startswith("a single matrix takes ")


def test_unknown_choice_is_an_error(monkeypatch):
    monkeypatch.setenv("QLLM_HF_EXPERTS", "fast")
    with pytest.raises(ConfigError, match="QLLM_HF_EXPERTS='fast'"):
        expert_product(*arguments(SPECS[0]), None)
