"""Attention straight on packed keys and values: on every instruction set, no further from float64 than torch is."""

import functools
from dataclasses import replace

import pytest
import torch
from attention_reference import decoded, error, exact

from qllm_hf.attention import KvRows, Request, native, reference
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec
from qllm_kernels import attention as calls

HEADS = 2
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Head dim and group size: whole blocks of 64 and 128, groups within them, and lengths that are neither.
ROWS = (
    (64, 64),
    (128, 128),
    (128, 32),
    (64, 32),
    (256, 128),
    (256, -1),
    (96, 96),
    (80, 80),
    (192, 96),
    (32, 32),
    (20, 10),
    (8, 8),
)
MASKS = ("none", "flags", "left padding", "numbers", "a window")


def rows_of(x, bits, group_size, symmetric):
    spec = Spec(bits, group_size, symmetric)
    form = RowFormat(spec, x.shape[-1], x.dtype)
    return KvRows(form.encode(x), form)


@functools.lru_cache
def request_of(
    tokens=200, count=1, group=1, batch=1, dim=64, group_size=64, bits=4, value_bits=None, symmetric=False,
    dtype=torch.bfloat16, mask="none", causal=False, softcap=None, sinks=False,
):  # fmt: skip
    generator = torch.Generator().manual_seed(tokens + count)
    shape = (batch, HEADS, tokens, dim)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    query = (1.5 * torch.randn(batch, HEADS * group, count, dim, generator=generator)).to(dtype)
    return Request(
        query,
        rows_of(keys, bits, group_size, symmetric),
        rows_of(values, value_bits or bits, group_size, symmetric),
        mask_of(mask, batch, HEADS * group, count, tokens, dtype, generator),
        causal,
        dim**-0.5,
        softcap,
        torch.randn(HEADS * group, generator=generator) if sinks else None,
    )


def mask_of(kind, batch, heads, count, tokens, dtype, generator):
    last = torch.arange(tokens - count, tokens)[:, None]
    positions = torch.arange(tokens)[None]
    match kind:
        case "none":
            return None
        case "flags":
            mask = torch.rand(batch, 1, count, tokens, generator=generator) > 0.3
            mask[..., -1] = True
            return mask
        case "left padding":
            return ((positions >= tokens // 2) & (positions <= last)).expand(batch, 1, count, tokens)
        case "numbers":  # as the slopes of ALiBi, one for each head
            return torch.randn(1, heads, 1, tokens, generator=generator).to(dtype).expand(1, heads, count, tokens)
        case "a window":
            shown = (positions <= last) & (positions > last - 9)
            return torch.zeros(1, 1, count, tokens, dtype=dtype).masked_fill(~shown, -torch.inf)
    raise AssertionError(kind)


def check(request):
    expected = exact(request)
    ours, twin = error(native.attend(request), expected), error(reference.attend(request), expected)
    # a single value comes back from torch as it is; here it is rounded once to the type
    smallest = {torch.bfloat16: 3e-3, torch.float16: 4e-4, torch.float32: 8e-7}[request.query.dtype]
    assert ours < max(1.1 * twin, smallest), f"off by {ours}, torch by {twin}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "group_size"), ROWS)
def test_all_rows(level, dim, group_size, dtype):
    for bits in range(2, 9):
        for symmetric in (False, True):
            check(request_of(dim=dim, group_size=group_size, bits=bits, symmetric=symmetric, dtype=dtype, group=3))


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 1500])
@pytest.mark.parametrize("mask", MASKS)
def test_all_masks_and_lengths(level, tokens, mask):
    for group, count in ((1, 1), (4, 1), (7, 1), (1, 5), (3, 7), (2, 33)):
        if count <= tokens:
            for dtype in (torch.bfloat16, torch.float32):
                check(request_of(tokens, count, group, 2, mask=mask, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_two_products_one_by_one(level, dtype):
    """What models with a softmax of their own take."""
    smallest = {torch.bfloat16: 3e-3, torch.float16: 4e-4, torch.float32: 8e-7}[dtype]
    for tokens, count, group, dim, group_size in ((70, 1, 1, 64, 64), (200, 3, 4, 128, 32), (700, 2, 1, 80, 80)):
        request = request_of(tokens, count, group, 2, dim=dim, group_size=group_size, dtype=dtype)
        keys, values = (reference.repeated(decoded(rows), group) for rows in (request.keys, request.values))
        scores = native.scores(request.query, request.keys)
        assert error(scores, request.query.double() @ keys.transpose(-1, -2)) < smallest
        weights = torch.softmax(scores.float() * request.scale, -1).to(dtype)
        assert error(native.weighted(weights, request.values), weights.double() @ values) < smallest
        # weights need not add up to 1, nor be positive
        for other in (3 * weights, -weights, weights * torch.randn(weights.shape).to(dtype)):
            assert error(native.weighted(other, request.values), other.double() @ values) < smallest


@pytest.mark.parametrize("tokens", [5, 70, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_caps_sinks_and_triangles(level, tokens, dtype):
    check(request_of(tokens, 1, 4, 2, softcap=5.0, dtype=dtype))
    check(request_of(tokens, 3, 4, 1, sinks=True, mask="flags", dtype=dtype))
    check(request_of(tokens, 5, 2, 1, softcap=2.0, sinks=True, causal=True, bits=3, value_bits=8, dtype=dtype))
    check(request_of(tokens, 5, 2, 1, causal=True, dtype=dtype))


def test_results_do_not_depend_on_threads(level):
    request = request_of(1500, 2, 4, 2, mask="flags")
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(error(native.attend(request), exact(request)))
    torch.set_num_threads(before)
    assert max(found) < 3e-3


def test_a_query_that_sees_nothing_gets_zeros(level):
    request = request_of(70, 2, 1, 1, mask="flags")
    mask = request.mask.clone()
    mask[:, :, 0] = False
    out = native.attend(replace(request, mask=mask))
    assert not out[:, :, 0].any()
    assert out[:, :, 1].any()


@pytest.mark.parametrize("part", ["query", "keys", "values"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_is_not_hidden(level, part, dtype):
    request = request_of(70, 1, 1, 1, dtype=dtype)
    if part == "query":
        query = request.query.clone()
        query[0, 1, 0, 3] = torch.nan
        broken = replace(request, query=query)
    else:
        rows = getattr(request, part)
        words = rows.rows.clone()
        # the scale of one token becomes NaN
        code_words = rows.format.length * rows.format.spec.bits // 16
        words[0, 1, 40, code_words : code_words + dtype.itemsize // 2] = -1
        broken = replace(request, **{part: KvRows(words, rows.format)})
    out = native.attend(broken)
    assert out[0, 1].isnan().all()
    assert torch.equal(out[0, 0], native.attend(request)[0, 0])


def test_rows_with_strides_and_views(level):
    """Keys grow in memory with room to spare; queries come transposed."""
    request = request_of(100, 3, 2, 2, mask="flags")
    expected = native.attend(request)
    roomy = []
    for rows in (request.keys, request.values):
        memory = torch.full((2, HEADS, 130, rows.rows.shape[-1]), -1, dtype=torch.int16)
        memory[:, :, :100] = rows.rows
        roomy.append(KvRows(memory[:, :, :100], rows.format))
    query = request.query.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(native.attend(replace(request, query=query, keys=roomy[0], values=roomy[1])), expected)


def test_memory_beyond_the_rows_is_not_needed(level):
    """What follows the last row may be anything: the rows end where their tensor does."""
    for symmetric in (False, True):
        for tokens in (63, 64, 128):
            check(request_of(tokens, symmetric=symmetric, bits=3))


def test_another_scale_is_noticed(level):
    """The comparison itself is alive."""
    request = request_of(200, group=3)
    assert error(native.attend(replace(request, scale=request.scale * 1.02)), exact(request)) > 4e-3


def test_what_does_not_fit_is_refused():
    assert calls.fits(128, 128)
    assert calls.fits(512, 64)
    assert not calls.fits(1024, 128)
    assert not calls.fits(128, 2)
    request = request_of(200)
    assert native.refuses(replace(request, query=request.query.double())) is not None
    assert "history" in native.refuses(request_of(7, 7, causal=True))
