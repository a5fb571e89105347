"""The kernels of experts behind the package's operation: layers, whole models, graphs that are compiled."""

from collections import Counter

import pytest
import torch
from nothing_waits import NothingWaits
from tiny_models import float_model, prompt

from qllm_hf import ops, quantize_
from qllm_hf.nn import PackedExperts
from qllm_hf.ops import Request, expert_product, experts
from qllm_hf.ops import gpu as operation
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec

if not operation.INTERPRETED:
    pytest.skip("runs in a process of its own, with TRITON_INTERPRET=1: `make test-gpu`", allow_module_level=True)

A8, A4 = Spec(8, -1), Spec(4, -1, symmetric=True)
EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture
def calls(monkeypatch):
    """How often the kernels of experts, and those of a single matrix, ran."""
    found = Counter()
    for name in ("expert_product", "_products"):
        run = getattr(operation, name)

        def counted(*arguments, run=run, name=name):
            found[name] += 1
            return run(*arguments)

        monkeypatch.setattr(operation, name, counted)
        if name == "expert_product":
            rows = [
                experts.Implementation(row.name, row.summary, counted, row.refuses) if row.name != "loop" else row
                for row in experts.EXPERTS
            ]
            monkeypatch.setattr(experts, "EXPERTS", tuple(rows))
    return found


def arguments(dtype, spec, rows=9):
    x, chosen = torch.randn(rows, 96).to(dtype), torch.randint(4, (rows,))
    return x, chosen, PackedTensor.encode((torch.randn(5, 12, 96) * 0.1).to(dtype), spec)


@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.parametrize("activation", [None, A8, A4], ids=str)
@pytest.mark.parametrize(
    ("dtype", "spec"),
    [(torch.float16, Spec(4, 32)), (torch.bfloat16, Spec(8, -1)), (torch.float16, Spec(3, -1, True))],
    ids=str,
)
def test_agrees_with_torch(calls, dtype, spec, activation, rows):
    """Both factors are on their grids, as in the loop of plain torch, where the weight is rounded to 16 bits, too."""
    x, chosen, weight = arguments(dtype, spec, rows)
    chosen[1] = 7
    with ops.prefer("dequantize"):
        wanted = expert_product(x, chosen, weight, activation)
    assert not calls
    with ops.prefer(operation.INTERPRETER):
        y = expert_product(x, chosen, weight, activation)
        other = expert_product(x, (chosen + 1) % 4, weight, activation)
    assert calls == {"expert_product": 2}
    assert (y.dtype, y.shape) == (dtype, wanted.shape)
    assert not y[1].any()
    assert (y - wanted).float().norm() < 2 * EPSILON[dtype] * wanted.float().norm()
    assert (other - wanted).float().norm() > 0.5 * wanted.float().norm()


@pytest.mark.parametrize(
    ("request_", "chosen", "reason"),
    [
        (Request("cpu", torch.float16, Spec(4), None), "interpreter", "a single matrix takes interpreter here"),
        (Request("cpu", torch.bfloat16, Spec(4), A8), "interpreter", "a single matrix takes interpreter here"),
        (Request("cuda", torch.float16, Spec(4), A4), "triton", None),
        (Request("cuda", torch.float32, Spec(4), A8), "triton", None),
        (Request("cuda", torch.float32, Spec(4), None), "loop", "a single matrix takes dequantize here"),
        (Request("cuda", torch.float16, Spec(4, 96), None), "loop", "a single matrix takes dequantize here"),
        (Request("cuda", torch.float16, Spec(4, 64, False, True), None), "loop", "a single matrix takes dequantize"),
    ],
)
def test_what_it_takes(request_, chosen, reason):
    with ops.prefer(operation.INTERPRETER):
        found = experts.resolve(request_)
    assert found.chosen.name == chosen
    assert (reason is None) if not found.refused else reason in found.refused[0][1]


def test_loop_where_it_is_asked_for(calls):
    x, chosen, weight = arguments(torch.float16, Spec(4, 32))
    with ops.prefer(operation.INTERPRETER), experts.prefer("loop"):
        y = expert_product(x, chosen, weight, None)
    assert calls == {"_products": len(set(chosen.tolist()))}
    with ops.prefer(operation.INTERPRETER):
        torch.testing.assert_close(expert_product(x, chosen, weight, None), y)
    assert calls["expert_product"] == 1


def test_float32_and_gradients_take_the_loop(calls):
    x, chosen, weight = arguments(torch.float32, Spec(4, 32))
    with ops.prefer(operation.INTERPRETER):
        expert_product(x, chosen, weight, None)
        x.requires_grad_()
        expert_product(x, chosen, weight, A8).square().sum().backward()
    assert x.grad.abs().sum(-1).all()
    assert not calls["expert_product"]


def layer_of(scheme):
    model = quantize_(float_model("mixtral").half(), scheme, w_group_size=32)
    return next(module for module in model.modules() if isinstance(module, PackedExperts))


def routed(tokens):
    """Hidden states, chosen experts, one of another process among them, and their weights."""
    index = torch.randint(4, (tokens, 2))
    index[0, 1] = 4
    return torch.randn(tokens, 64).half(), index, torch.rand(tokens, 2).half()


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["W4", "W4A8"])
def test_compiled_graph(calls, scheme):
    layer, given = layer_of(scheme), routed(5)
    with ops.prefer("dequantize"):
        reference = layer(*given)
    with ops.prefer(operation.INTERPRETER):
        wanted = layer(*given)
        assert torch.compile(layer, fullgraph=True, backend="aot_eager")(*given).equal(wanted)
    assert calls == {"expert_product": 4}
    assert 0 < (wanted - reference).float().norm() < 0.01 * reference.float().norm()


@torch.no_grad()
@pytest.mark.parametrize(("family", "scheme"), [("mixtral", "W4"), ("qwen3_moe", "W3A8")])
def test_whole_model(calls, family, scheme):
    """A prompt in blocks and a token one by one, against plain torch on the same codes."""
    model = quantize_(float_model(family).half(), scheme, w_group_size=32)
    layers = sum(isinstance(module, PackedExperts) for module in model.modules())

    def logits():
        return torch.cat([model(prompt(family)[:, :length]).logits[0, -1:] for length in (7, 1)]).float()

    with ops.prefer("dequantize"):
        wanted = logits()
    assert not calls
    with ops.prefer(operation.INTERPRETER):
        found = logits()
    assert calls["expert_product"] == 2 * 2 * layers
    assert (found - wanted).norm() < 0.03 * wanted.norm()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("scheme", ["W4", "W4A8"])
def test_nothing_waits_for_the_device(monkeypatch, calls, scheme, tokens):
    """Neither the layer nor what it calls; the loop does."""
    layer, given = layer_of(scheme), routed(tokens)
    monkeypatch.setattr(experts, "is_ordinary", lambda _: True)  # without the mode it is
    with ops.prefer(operation.INTERPRETER), NothingWaits():
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", lambda _: pytest.fail("waits for the device"))
            layer(*given)
        with experts.prefer("loop"), pytest.raises(RuntimeError, match="waits for the device"):
            layer(*given)
    assert calls["expert_product"] == 2
