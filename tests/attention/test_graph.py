"""In a graph that is being compiled attention to packed rows is one operator, and nothing is decoded for it."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from compiled_graphs import LENGTH, Graphs, steps
from tiny_models import MODELS, float_model, on_one_thread, prompt
from torch._inductor.utils import fresh_cache, run_and_get_code
from transformers import CompileConfig, StaticCache

from qllm_hf import native as library
from qllm_hf import quantize_
from qllm_hf.attention import ATTENTION, KvRows, graph, lazy_pair, prefer, registry
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec

pytestmark = [
    pytest.mark.skipif(not library.is_there(), reason="the library of CPU kernels is not there"),
    pytest.mark.skipif(not graph.IS_TRACEABLE, reason="graphs of this torch decode"),
]
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
BATCH, HEADS, TOKENS, DIM = 2, 2, 9, 64
FORM = RowFormat(Spec(4, DIM, False), DIM, torch.float32)


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def bodies(monkeypatch):
    """The number of tokens in each history that the kernel attended to with one query."""
    found = []

    def run(request):
        if request.query.shape[2] == 1:
            found.append(request.keys.tokens)
        return ATTENTION[0].run(request)

    monkeypatch.setattr(registry, "ATTENTION", (replace(ATTENTION[0], run=run), *ATTENTION[1:]))
    return found


# One operation


def tensors():
    """A query, and rows of keys and values."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        FORM.encode(torch.randn(BATCH, HEADS, TOKENS, DIM, generator=generator).to(FORM.dtype)) for _ in range(2)
    )
    return torch.randn(BATCH, 2 * HEADS, 1, DIM, generator=generator), keys, values


def repeat_kv(x, count):
    """As transformers makes the heads of grouped queries."""
    batch, heads, tokens, dim = x.shape
    return x[:, :, None, :, :].expand(batch, heads, count, tokens, dim).reshape(batch, heads * count, tokens, dim)


def attention(query, keys, values):
    return F.scaled_dot_product_attention(query, repeat_kv(keys, 2), repeat_kv(values, 2))


def changed_in_place(query, keys, values):
    keys.mul_(-1)
    return attention(query, keys, values)


def with_a_break(query, keys, values):
    torch._dynamo.graph_break()
    return attention(query, keys, values)


def own_softmax(query, keys, values):
    return torch.softmax(query @ repeat_kv(keys, 2).transpose(2, 3), -1) @ repeat_kv(values, 2)


def of_all(query, keys, values):
    return attention(query.expand(-1, -1, TOKENS, -1), keys, values)


def joined(query, keys, values):
    return attention(query, torch.cat([keys, keys], 2), torch.cat([values, values], 2))


USES = {
    "attention": (attention, TOKENS),
    "first tokens": (lambda query, keys, values: attention(query, keys[:, :, :5, :], values[:, :, :5, :]), 5),
    "last tokens": (lambda query, keys, values: attention(query, keys[:, :, -4:], values[:, :, -4:]), 4),
    "one head for all": (
        lambda query, keys, values: F.scaled_dot_product_attention(query, keys, values, enable_gqa=True), TOKENS,
    ),
    "changed in place": (changed_in_place, None),
    "changed": (lambda query, keys, values: attention(query, keys * 2, values), None),
    "one decoded": (lambda query, keys, values: attention(query, keys, values + 0), None),
    "as many queries as keys": (of_all, None),
    "own softmax": (own_softmax, None),
    "another type": (lambda query, keys, values: attention(query.double(), keys.double(), values.double()), None),
    "joined": (joined, None),
}  # fmt: skip


def step_of(use):
    return lambda query, keys, values: use(query, *lazy_pair(KvRows(keys, FORM), KvRows(values, FORM)))


@torch.no_grad()
@pytest.mark.parametrize("name", USES)
def test_rows_are_seen_by_attention_and_numbers_by_all_others(bodies, name):
    use, history = USES[name]
    step, graphs, arguments = step_of(use), Graphs(), tensors()
    with prefer("dequantize"):
        wanted = step(*arguments)
    found = torch.compile(step, fullgraph=True, backend=graphs.backend)(*arguments)
    torch.testing.assert_close(found, wanted)
    assert type(found) is torch.Tensor
    assert bodies == ([] if history is None else [history])
    assert bool(graphs.decoded(TOKENS, DIM)) == (history is None)


@torch.no_grad()
def test_a_break_between_cache_and_attention():
    step, arguments = step_of(with_a_break), tensors()
    torch.testing.assert_close(torch.compile(step, backend="aot_eager")(*arguments), step(*arguments))


@torch.no_grad()
def test_what_leaves_the_graph_is_the_decoded_tensor():
    def both(keys, values):
        return lazy_pair(KvRows(keys, FORM), KvRows(values, FORM))

    _, *rows = tensors()
    keys, _ = torch.compile(both, fullgraph=True, backend="aot_eager")(*rows)
    assert torch.equal(keys + 0, FORM.decode(rows[0]))


@torch.no_grad()
def test_the_implementation_is_chosen_when_the_graph_runs(bodies):
    step, arguments = step_of(attention), tensors()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    compiled(*arguments)
    assert len(bodies) == 1
    with prefer("dequantize"):
        compiled(*arguments)
    assert len(bodies) == 1


@torch.no_grad()
def test_what_nothing_takes_packed_is_decoded_in_the_graph(monkeypatch):
    monkeypatch.setattr(library, "is_there", lambda: False)
    graphs, arguments = Graphs(), tensors()
    step = step_of(attention)
    torch.testing.assert_close(
        torch.compile(step, fullgraph=True, backend=graphs.backend)(*arguments), step(*arguments)
    )
    assert graphs.operators() == [0]


def test_gradients_decode(bodies):
    query, *rows = tensors()
    query.requires_grad_()
    torch.compile(step_of(attention), fullgraph=True, backend="aot_eager")(query, *rows).sum().backward()
    assert query.grad is not None
    assert not bodies


@pytest.mark.parametrize(
    "mask", [None, torch.tensor([True] * 5 + [False] * (TOKENS - 5))[None, None, None]], ids=["all", "some"]
)
@pytest.mark.parametrize("name", ["kernel", "dequantize"])
def test_the_operator_keeps_to_its_declaration(name, mask):
    described, used = [4, DIM, DIM], None if mask is None else torch.tensor(5)
    arguments = (*tensors(), mask, used, described, described, False, False, False, 0.1)
    with prefer(name):
        torch.library.opcheck(graph._opaque, arguments)


# Models


# grouped queries in all of them; windows in mistral, and in some layers of gemma
@torch.no_grad()
@pytest.mark.oldest
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_steps_with_a_static_cache(bodies, name):
    model, graphs = quantize_(float_model(name), "KV4"), Graphs()
    wanted = steps(model, model, name)
    bodies.clear()
    compiled = torch.compile(model.__call__, fullgraph=True, backend=graphs.backend)
    found = steps(model, compiled, name)
    layers = model.config.num_hidden_layers
    assert len(bodies) == 8 * layers
    assert set(graphs.operators()) == {layers}
    windows = {
        getattr(layer, "max_cache_len", LENGTH) for layer in StaticCache(model.config, max_cache_len=LENGTH).layers
    }
    head = getattr(model.config, "head_dim", None) or 16
    assert not [x for tokens in windows for x in graphs.decoded(tokens, head)]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    with prefer("dequantize"):
        torch.testing.assert_close(found, steps(model, model, name), atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_spoiled_row_changes_what_the_graph_says():
    model = quantize_(float_model("llama"), "KV4")

    def spoil(cache):
        cache.layers[1]._keys[1, 0, 10, 0] ^= 0x1111

    compiled = torch.compile(model.__call__, fullgraph=True, backend="aot_eager")
    good, bad = steps(model, compiled, "llama"), steps(model, compiled, "llama", spoil)
    differ = (good != bad).any(-1)
    assert differ[1:, 1].all()
    assert not differ[:, 0].any()


# with a softmax of their own, and latents that are made into keys and values
@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "gemma2"])
def test_models_with_another_attention_decode(bodies, name):
    model, graphs = quantize_(float_model(name), "KV4"), Graphs()
    with prefer("dequantize"):
        wanted = steps(model, model, name)
    bodies.clear()
    found = steps(model, torch.compile(model.__call__, fullgraph=True, backend=graphs.backend), name)
    assert not any(graphs.operators())
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@torch.no_grad()
def test_bloom_decodes():
    """It makes no use of static caches."""
    model, ids = quantize_(float_model("bloom"), "KV4"), prompt("bloom")

    def last(forward):
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        return forward(ids[:, -1:], past_key_values=cache, use_cache=True).logits

    graphs = Graphs()
    found = last(torch.compile(model.__call__, fullgraph=True, backend=graphs.backend))
    torch.testing.assert_close(found, last(model), atol=2e-5, rtol=0)
    assert graphs.operators() == [0]


@torch.no_grad()
def test_a_graph_that_computes_a_prompt():
    """As many queries are decoded for, once."""
    model, ids = quantize_(float_model("llama"), "KV4"), prompt("llama").repeat(1, 8)

    def logits(forward):
        cache = StaticCache(config=model.config, max_cache_len=200)
        model(ids[:, :4], past_key_values=cache, use_cache=True)
        return forward(ids[:, 4:], past_key_values=cache, use_cache=True).logits

    graphs = Graphs()
    found = logits(torch.compile(model.__call__, fullgraph=True, backend=graphs.backend))
    assert graphs.operators() == [0]
    torch.testing.assert_close(found, logits(model), atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama"])
def test_generate_compiles_the_decoding_step(bodies, name):
    model, ids = quantize_(float_model(name), "W4KV4", w_group_size=32), prompt(name)
    mask = torch.ones_like(ids)
    ids[0, :6], mask[0, :6] = 0, 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    wanted = model.generate(ids, disable_compile=True, **options)
    graphs = Graphs()
    config = CompileConfig(fullgraph=True, backend=graphs.backend, mode=None)
    config._compile_all_devices = True  # as transformers' own tests do: by itself it compiles on a GPU
    bodies.clear()
    found = model.generate(ids, compile_config=config, **options)
    assert torch.equal(found, wanted)
    assert graphs.operators()
    assert set(graphs.operators()) == {MODELS[name].options["num_hidden_layers"]}
    assert len(bodies) == 5 * MODELS[name].options["num_hidden_layers"]


@torch.no_grad()
@pytest.mark.slow
def test_with_the_backend_that_users_have(bodies):
    """Inductor writes C++ for all that is around the operator, and gives it the rows of the cache themselves."""
    model = quantize_(float_model("llama"), "KV4")
    wanted = steps(model, model, "llama")
    bodies.clear()
    with fresh_cache():
        found, code = run_and_get_code(steps, model, torch.compile(model.__call__, fullgraph=True), "llama")
    assert len(bodies) == 8 * 2
    calls = re.findall(r"qllm_hf\.attention\.default\((\w+), (\w+), (\w+)", "\n".join(code))
    assert len(calls) >= 2
    assert all(rows.startswith("arg") for _, *both in calls for rows in both), "the whole cache is copied at each step"
    torch.testing.assert_close(
        found, wanted, atol=2e-2, rtol=0
    )  # its sums round differently, now and then to other codes
