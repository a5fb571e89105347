"""Lazy rows are the decoded tensor to all who look, and packed rows to attention."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qllm_hf.attention import ATTENTION, KvRows, LazyRows, lazy_pair, prefer, registry
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec

BATCH, HEADS, TOKENS, DIM = 2, 2, 9, 64
FORM = RowFormat(Spec(4, DIM, False), DIM, torch.float32)


def rows(tokens=TOKENS, seed=0, form=FORM):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, HEADS, tokens, DIM, generator=generator).to(form.dtype)
    return KvRows(form.encode(x), form)


def lazy(**options):
    return LazyRows.of(rows(**options))


def repeat_kv(x, count):
    """As transformers makes the heads of grouped queries."""
    batch, heads, tokens, dim = x.shape
    return x[:, :, None, :, :].expand(batch, heads, count, tokens, dim).reshape(batch, heads * count, tokens, dim)


@pytest.fixture
def asked(monkeypatch):
    """The requests that reach an implementation which takes all of them."""
    requests = []

    def run(request):
        requests.append(request)
        return ATTENTION[-1].run(request)

    taker = replace(ATTENTION[0], name="taker", run=run, refuses=lambda _: None)
    monkeypatch.setattr(registry, "ATTENTION", (taker, *ATTENTION))
    return requests


def test_it_looks_like_the_decoded_tensor():
    x, expected = lazy(), rows().decode()
    assert (x.shape, x.dtype, x.device, x.dim(), x.numel()) == (
        expected.shape, expected.dtype, expected.device, 4, expected.numel(),
    )  # fmt: skip
    assert x._decoded is None, "asking for its shape decoded it"
    assert isinstance(x, torch.Tensor)


LOOKS = {
    "sum": lambda x: x * 2 + 1,
    "matmul": lambda x: torch.ones(BATCH, HEADS, TOKENS, DIM) @ x.transpose(2, 3),
    "on the right": lambda x: 1 - x,
    "in a list": lambda x: torch.cat([x, x], -2),
    "method": lambda x: x.permute(0, 2, 1, 3).contiguous(),
    "index": lambda x: x[0],
    "step": lambda x: x[:, :, ::2],
    "last tokens": lambda x: x[:, :, -3:, :],
    "einsum": lambda x: torch.einsum("bhtd,bhtd->bht", x, x),
    "operator": lambda x: torch.ops.aten.neg(x),
    "other dtype": lambda x: x.to(torch.float16),
    "repeated heads": lambda x: repeat_kv(x, 3) + 0,
    "half repeated": lambda x: x[:, :, None, :, :].expand(BATCH, HEADS, 2, TOKENS, DIM) + 0,
    "copy": lambda x: copy.deepcopy(x) + 0,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)) + 0,
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "list": lambda x: torch.tensor(x.tolist()),
}


@pytest.mark.parametrize("look", LOOKS)
def test_any_other_operation_sees_the_numbers(look):
    got = LOOKS[look](lazy())
    assert torch.equal(got, LOOKS[look](rows().decode()))


def test_what_was_changed_in_place_is_seen_by_attention(asked):
    keys, values = lazy(), lazy(seed=1)
    query = torch.randn(BATCH, HEADS, 1, DIM)
    before = F.scaled_dot_product_attention(query, keys, values)
    keys.mul_(-1)
    after = F.scaled_dot_product_attention(query, keys, values)
    assert len(asked) == 1
    assert not torch.allclose(before, after)
    assert torch.equal(after, F.scaled_dot_product_attention(query, -rows().decode(), rows(seed=1).decode()))


CALLS = {
    "as many heads": dict(heads=HEADS),
    "grouped": dict(heads=3 * HEADS, enable_gqa=True),
    "repeated": dict(heads=3 * HEADS, repeats=3),
    "flags": dict(
        heads=HEADS, attn_mask=torch.rand(BATCH, 1, 1, TOKENS, generator=torch.Generator().manual_seed(0)) > 0.4
    ),
    "numbers": dict(
        heads=2 * HEADS, repeats=2, attn_mask=torch.arange(TOKENS).float().expand(1, 1, 4, TOKENS), count=4
    ),
    "triangle": dict(heads=HEADS, count=TOKENS, is_causal=True),
    "scale": dict(heads=HEADS, scale=0.3),
    "first tokens": dict(heads=HEADS, count=5, is_causal=True, stop=5),
}


@pytest.mark.parametrize("name", CALLS)
def test_attention_takes_the_rows(asked, name):
    options = dict(CALLS[name])
    query = torch.randn(BATCH, options.pop("heads"), options.pop("count", 1), DIM)
    repeats, stop = options.pop("repeats", 1), options.pop("stop", None)

    def attention(keys, values):
        if stop:
            keys, values = keys[:, :, :stop, :], values[:, :, :stop, :]
        return F.scaled_dot_product_attention(query, repeat_kv(keys, repeats), repeat_kv(values, repeats), **options)

    got = attention(lazy(), lazy(seed=1))
    assert len(asked) == 1
    torch.testing.assert_close(got, attention(rows().decode(), rows(seed=1).decode()))


DECODED = {
    "dropout": dict(dropout_p=0.5),
    "a query that wants a gradient": dict(requires_grad=True),
    "another dtype": dict(dtype=torch.float64),
    "a mask of two dimensions": dict(attn_mask=torch.zeros(1, TOKENS)),
}


@pytest.mark.parametrize("name", DECODED)
def test_what_is_unusual_is_decoded(asked, name):
    options = dict(DECODED[name])
    query = torch.randn(BATCH, HEADS, 1, DIM, dtype=options.pop("dtype", torch.float32))
    query.requires_grad_(options.pop("requires_grad", False))

    def attention(keys, values):
        torch.manual_seed(0)
        keys, values = keys.to(query.dtype), values.to(query.dtype)
        return F.scaled_dot_product_attention(query, keys, values, **options)

    got = attention(lazy(), lazy(seed=1))
    assert not asked
    assert torch.equal(got, attention(rows().decode(), rows(seed=1).decode()))
    assert got.requires_grad == query.requires_grad


def test_only_one_of_both_is_decoded(asked):
    query = torch.randn(BATCH, HEADS, 1, DIM)
    got = F.scaled_dot_product_attention(query, lazy(), rows(seed=1).decode())
    assert not asked
    assert torch.equal(got, F.scaled_dot_product_attention(query, rows().decode(), rows(seed=1).decode()))


def test_decoded_only_once(monkeypatch):
    x = lazy()
    assert (x + 0).equal(rows().decode())
    monkeypatch.setattr(RowFormat, "decode", lambda *_: pytest.fail("decoded again"))
    x.sum()


def pair(**options):
    return [isinstance(x, LazyRows) for x in lazy_pair(rows(**options), rows(seed=1, **options))]


def test_where_rows_are_lazy():
    assert pair() == [True, True]
    assert pair(form=RowFormat(Spec(4, DIM, False), DIM, torch.bfloat16)) == [True, True]
    assert pair(form=RowFormat(Spec(4, DIM, False), DIM, torch.float64)) == [False, False]
    assert pair(form=RowFormat(Spec(4, DIM, False, paper_exact=True), DIM, torch.bfloat16)) == [False, False]
    assert pair(form=RowFormat(None, DIM, torch.float32)) == [False, False]
    with prefer("dequantize"):
        assert pair() == [False, False]


def test_the_environment_turns_it_off(monkeypatch):
    monkeypatch.setenv("QLLM_HF_ATTENTION", "dequantize")
    assert pair() == [False, False]


def test_no_lazy_rows_in_a_compiled_graph():
    def step(x):
        keys, values = lazy_pair(KvRows(x, FORM), KvRows(x, FORM))
        return keys + values

    source = rows().rows
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(source), step(source))
