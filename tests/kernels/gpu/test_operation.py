"""The kernels for GPUs behind the package's operations: layers, caches, whole models, graphs that are compiled."""

from collections import Counter

import pytest
import torch
from linear_reference import exact
from tiny_models import float_model, prompt
from transformers import StaticCache

from qllm_hf import attention, on_gpu, ops, quantize_
from qllm_hf.kv_rows import RowFormat
from qllm_hf.nn import PackedLinear
from qllm_hf.ops import LINEAR, Request, linear, linear_many
from qllm_hf.ops import gpu as operation
from qllm_hf.packed import PackedTensor, encode_reference
from qllm_hf.scheme import Spec

if not operation.INTERPRETED:
    pytest.skip("runs in a process of its own, with TRITON_INTERPRET=1: `make test-gpu`", allow_module_level=True)

(ROW,) = (row for row in LINEAR if row.name == operation.INTERPRETER)
A8, A4 = Spec(8, -1), Spec(4, -1, symmetric=True)
CASES = [
    (bits, group_size, dtype, activation)
    for number, (bits, group_size) in enumerate(((2, 64), (3, 128), (4, 32), (4, 128), (6, -1), (8, 64), (8, -1)))
    for dtype, activation in (
        (torch.bfloat16, None) if number % 2 else (torch.float16, None),
        (torch.float32 if number % 3 else torch.bfloat16, A4 if number % 4 == 1 else A8),
    )
]


@pytest.fixture
def calls(monkeypatch):
    """How often each of the kernels ran."""
    found = Counter()
    for module, name in ((operation, "_products"), (attention.gpu, "attend"), (on_gpu, "encode_rows")):
        run = getattr(module, name)

        def counted(*arguments, run=run, name=name, **options):
            found[name] += 1
            return run(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
        if module is operation:
            monkeypatch.setitem(ops.graph.BODIES, operation.NAME, counted)
    rows = [
        attention.registry.Implementation(row.name, row.summary, attention.gpu.attend, row.refuses, row.automatic)
        if row.name == "interpreter"
        else row
        for row in attention.ATTENTION
    ]
    monkeypatch.setattr(attention.registry, "ATTENTION", tuple(rows))
    return found


@pytest.mark.parametrize("tokens", [1, 19])
@pytest.mark.parametrize(("bits", "group_size", "dtype", "activation"), CASES)
def test_agrees_with_exact_arithmetic(bits, group_size, dtype, activation, tokens):
    spec = Spec(bits, group_size, symmetric=bits % 3 == 0)
    x, weight, bias = torch.randn(tokens, 172), torch.randn(12, 172) * 0.1, torch.randn(12)
    packed = PackedTensor.encode(weight.to(dtype), spec)
    assert ROW.refuses(Request("cpu", dtype, spec, activation)) is None
    arguments = (x.to(dtype), packed, bias.to(dtype), activation)
    y, wanted = ROW.run(*arguments), exact(*arguments).y
    assert (y.dtype, y.shape) == (dtype, (tokens, 12))
    error = (y.double() - wanted).norm() / wanted.norm()
    assert error < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]
    words = packed.words.clone()
    words[3] ^= 0x4040
    wrong = ROW.run(arguments[0], packed._replace(words=words), *arguments[2:])
    assert (wrong != y).any(0).nonzero().flatten().tolist() == [3]


def test_many_tokens_are_multiplied_with_the_decoded_weight(monkeypatch):
    monkeypatch.setattr(operation, "DECODED_FROM", 8)
    x, weight = torch.randn(8, 128).bfloat16(), PackedTensor.encode(torch.randn(5, 128).bfloat16(), Spec(4, 32))
    with ops.prefer(operation.INTERPRETER):
        assert linear(x, weight, None, None).equal(torch.nn.functional.linear(x, weight.decode()))


def test_weights_that_share_tokens(calls):
    """One quantization of x, whatever the formats of the weights."""
    x = torch.randn(2, 3, 128)
    pairs = [
        (PackedTensor.encode(torch.randn(rows, 128), Spec(bits, 64)), torch.randn(rows))
        for rows, bits in ((5, 4), (7, 8), (3, 3))
    ]
    with ops.prefer(operation.INTERPRETER):
        many = linear_many(x, pairs, A8)
        assert calls["_products"] == 1
        for y, (weight, bias) in zip(many, pairs, strict=True):
            assert y.shape == (2, 3, weight.words.shape[0])
            assert y.equal(linear(x, weight, bias, A8))


def test_weights_of_one_format_are_multiplied_at_once(monkeypatch):
    """Those with a bias apart from those without; each result is that of its own weight."""
    kernels, calls = operation._kernels("weights_many"), []
    run = kernels.linear_many
    monkeypatch.setattr(
        kernels, "linear_many", lambda x, weights, **form: calls.append(len(weights)) or run(x, weights, **form)
    )
    x = torch.randn(2, 3, 128).half()
    specs = Spec(4, 64), Spec(8, 64), Spec(4, 64), Spec(4, 64, symmetric=True), Spec(4, 64), Spec(4, 32)
    biases = True, True, True, True, False, True
    pairs = [
        (PackedTensor.encode(torch.randn(rows, 128).half(), spec), torch.randn(rows).half() if bias else None)
        for rows, spec, bias in zip((5, 7, 3, 8, 9, 4), specs, biases, strict=True)
    ]
    with ops.prefer(operation.INTERPRETER):
        many = linear_many(x, pairs, None)
    assert calls == [2, 1, 1, 1, 1]
    for y, pair in zip(many, pairs, strict=True):
        wanted = exact(x.view(6, 128), *pair, None).y.view(2, 3, -1)
        assert (y.double() - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cuda", torch.float32, Spec(4), None), "tensor cores have nothing as exact as float32"),
        (Request("cuda", torch.float16, Spec(4, 96), None), "takes 32, 64, multiples of 128"),
        (Request("cuda", torch.float16, Spec(4, 64, False, True), None), "paper_exact"),
        (Request("cuda", torch.float16, Spec(4), Spec(8, 64)), "one group per token"),
        (Request("cpu", torch.float16, Spec(4), None), "for tensors on a GPU"),
        (Request("cuda", torch.float16, Spec(4), A8), None),
    ],
)
def test_what_it_takes(request_, reason):
    (row,) = (row for row in LINEAR if row.name == operation.NAME)
    found = row.refuses(request_)
    assert (found is None) if reason is None else (reason in found)


def test_layer_in_a_compiled_graph(calls):
    module = PackedLinear(128, 12, bias=False, spec=Spec(4, 64), activation=A8, dtype=torch.bfloat16)
    module.assign_packed("weight", PackedTensor.encode(torch.randn(12, 128).bfloat16(), Spec(4, 64)))
    x = torch.randn(3, 128).bfloat16()
    with ops.prefer(operation.INTERPRETER), torch.no_grad():
        wanted = module(x)
        assert calls["_products"] == 1
        assert torch.compile(module, fullgraph=True, backend="aot_eager")(x).equal(wanted)
    assert calls["_products"] == 2


def test_gradients_take_torch(calls):
    x = torch.randn(2, 128, requires_grad=True)
    weight = PackedTensor.encode(torch.randn(3, 128), Spec(4, 32))
    with ops.prefer(operation.INTERPRETER):
        linear(x, weight, None, A8).sum().backward()
    assert x.grad is not None
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_made_and_read_as_torch_does(monkeypatch, dtype):
    monkeypatch.setattr(on_gpu, "DEVICES", {"cpu"})
    for spec, length in ((Spec(4, 64), 200), (Spec(3, -1, symmetric=True), 129), (Spec(8, 128), 256)):
        x = torch.randn(2, 3, 5, length).to(dtype)
        wanted = encode_reference(x, spec)
        found = on_gpu.encode(x, spec, dtype)
        assert all(a is b is None or a.equal(b) for a, b in zip(found, wanted[:3], strict=True))
        assert PackedTensor.encode(x, spec).words.equal(wanted.words)
        assert wanted.decode().equal(on_gpu.decode(*wanted[:3], spec, length, dtype))
        rows_format = RowFormat(spec, length, dtype)
        rows = rows_format.encode(x)
        assert rows.equal(rows_format.encode_reference(x))
        assert rows_format.decode(rows).equal(rows_format.decode_reference(rows))
        room = torch.zeros(2, 3, 9, rows_format.words, dtype=torch.int16)
        rows_format.encode_into(x, room[:, :, 2:7])
        assert room[:, :, 2:7].equal(rows)
        assert not room[:, :, :2].any()
    assert on_gpu.encode(x, Spec(4, 0), dtype) is None


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_whole_model(monkeypatch, calls, static):
    """Every product and every attention to a history of a few tokens, against plain torch on the same codes."""
    model = quantize_(float_model("llama").half(), "W4KV8", w_group_size=32, kv_group_size=32)
    ids = prompt("llama")[:, :9]

    def logits():
        cache = StaticCache(config=model.config, max_cache_len=16) if static else None
        out = model(ids[:, :7], past_key_values=cache, use_cache=True)
        found = [out.logits[:, -1]]
        for step in (7, 8):
            out = model(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits[:, -1])
        return torch.stack(found).float()

    with ops.prefer("dequantize"), attention.prefer("dequantize"):
        wanted = logits()
    assert not calls
    monkeypatch.setattr(on_gpu, "DEVICES", {"cpu"})
    with ops.prefer(operation.INTERPRETER), attention.prefer("interpreter"):
        found = logits()
    layers = model.config.num_hidden_layers
    assert calls["attend"] >= 2 * layers
    assert calls["_products"] >= 3 * layers
    assert calls["encode_rows"] >= 3 * layers * 2
    assert (found - wanted).norm() < 0.03 * wanted.norm()
