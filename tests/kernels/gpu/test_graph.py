"""Attention to packed rows in a graph that is being compiled, by the kernels for GPUs, and nothing waits for them."""

import pytest
import torch
from compiled_graphs import Graphs, steps
from nothing_waits import NothingWaits
from tiny_models import float_model

from qllm_hf import attention, quantize_
from qllm_hf.attention import gpu as kernels
from qllm_hf.attention import graph
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec

if not kernels.INTERPRETED:
    pytest.skip("runs in a process of its own, with TRITON_INTERPRET=1: `make test-gpu`", allow_module_level=True)


@pytest.fixture
def bodies(monkeypatch):
    """The requests that came to the kernels for GPUs."""
    found, run = [], kernels.attend

    def attend(request):
        found.append(request)
        return run(request)

    rows = [
        attention.Implementation(row.name, row.summary, attend, row.refuses, row.automatic, row.refuses_kind)
        if row.name == "interpreter"
        else row
        for row in attention.ATTENTION
    ]
    monkeypatch.setattr(attention.registry, "ATTENTION", tuple(rows))
    torch._dynamo.reset()
    return found


# mistral has windows, shorter than what it reads
@torch.no_grad()
@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.float16), ("mistral", torch.bfloat16)])
def test_steps_with_a_static_cache(bodies, name, dtype):
    model, graphs = quantize_(float_model(name).to(dtype), "KV4", kv_group_size=16), Graphs()
    with attention.prefer("interpreter"):
        wanted = steps(model, model, name)
        bodies.clear()
        found = steps(model, torch.compile(model.__call__, fullgraph=True, backend=graphs.backend), name)
    layers = model.config.num_hidden_layers
    assert set(graphs.operators()) == {layers}
    assert sum(request.query.shape[2] == 1 for request in bodies) == 8 * layers
    assert not graphs.decoded(bodies[-1].keys.tokens, 16)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("mask", ["none", "flags", "numbers", "numbers of each head"])
def test_the_operator_never_waits(monkeypatch, bodies, mask):
    form = RowFormat(Spec(4, 32, False), 64, torch.float16)
    keys, values = (form.encode(torch.randn(2, 2, 40, 64).half()) for _ in range(2))
    masks = {
        "none": None,
        "flags": torch.rand(2, 1, 1, 40) > 0.3,
        "numbers": torch.randn(2, 1, 1, 40).half(),
        "numbers of each head": torch.randn(2, 4, 1, 40).half(),
    }
    used = torch.tensor(40)
    arguments = torch.randn(2, 4, 1, 64).half(), keys, values, masks[mask], used, *[[4, 32, 64]] * 2, *[False] * 3, 0.1
    monkeypatch.setattr(kernels, "is_ordinary", lambda _: True)  # it is looked at by a mode here
    with attention.prefer("interpreter"):
        graph._opaque._init_fn(*arguments)  # is compared with torch
        with NothingWaits():
            found = graph._opaque._init_fn(*arguments)
    assert len(bodies) == 2
    with attention.prefer("dequantize"):
        torch.testing.assert_close(found, graph._opaque(*arguments), atol=5e-3, rtol=0)


def test_room_behind_the_tokens_is_not_read():
    """How many there are is read where the kernel runs: the rest of a tile would spoil it, although it is hidden."""
    form = RowFormat(Spec(4, 32, False), 64, torch.float16)
    keys, values = (form.encode(torch.randn(2, 2, 40, 64).half()) for _ in range(2))
    arguments = torch.randn(2, 4, 1, 64).half(), keys, values, (torch.arange(40) < 21).expand(2, 1, 1, 40)
    rest = *[[4, 32, 64]] * 2, *[False] * 3, 0.1
    with attention.prefer("interpreter"):
        expected = graph._opaque(*arguments, torch.tensor(40), *rest)
        keys[:, :, 21:] = -1  # scales that are no numbers
        values[:, :, 21:] = -1
        assert graph._opaque(*arguments, torch.tensor(40), *rest).isnan().any()
        found = graph._opaque(*arguments, torch.tensor(21), *rest)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_waiting_would_be_noticed():
    with pytest.raises(RuntimeError, match="_local_scalar_dense"), NothingWaits():
        torch.ones(3).sum().item()
