"""Attention over packed rows in Triton: no further from float64 than torch is on decoded rows."""

from dataclasses import replace

import pytest

pytest.importorskip("triton")

import torch
from attention_reference import error, exact

from qllm_hf.attention import KvRows, Request, reference
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec
from qllm_kernels.gpu import attention
from qllm_kernels.gpu.attention import Config
from qllm_kernels.gpu.attention_tiles import is_planar

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Head dim and group size: whole blocks, several groups in one, short blocks, whose codes are gathered for some bits.
ROWS = ((128, 128), (128, 32), (64, 32), (96, 48))
# Several blocks, the last one short; blocks that no field of bits fills; groups that cut planes.
OTHER_ROWS = ((256, 128), (192, 192), (64, 64), (80, 40), (100, 100), (48, 24))
TILE = 32
# The rounding of the result, where torch has none: a single value comes back as it is.
ROUNDING = {torch.bfloat16: 3e-3, torch.float16: 4e-4, torch.float32: 2e-6}


def rows_of(x, bits, group_size, symmetric=False):
    form = RowFormat(Spec(bits, group_size, symmetric), x.shape[-1], x.dtype)
    return KvRows(form.encode(x), form)


def request_of(
    tokens=70, count=1, group=1, batch=1, heads=1, dim=64, group_size=64, bits=4, value_bits=None, symmetric=False,
    dtype=torch.bfloat16, mask=None, causal=False, softcap=None, sinks=False,
):  # fmt: skip
    generator = torch.Generator().manual_seed(tokens + count)
    shape = (batch, heads, tokens, dim)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    query = (1.5 * torch.randn(batch, heads * group, count, dim, generator=generator)).to(dtype)
    return Request(
        query,
        rows_of(keys, bits, group_size, symmetric),
        rows_of(values, value_bits or bits, group_size, symmetric),
        mask,
        causal,
        dim**-0.5,
        softcap,
        torch.randn(heads * group, generator=generator) if sinks else None,
    )


def arguments(request):
    keys, values = request.keys.format, request.values.format
    return {
        "key_bits": keys.spec.bits,
        "value_bits": values.spec.bits,
        "group_size": keys.spec.group_size,
        "symmetric": keys.spec.symmetric,
        "mask": request.mask,
        "value_dim": values.length,
        "value_group_size": values.spec.group_size,
    }


def ours(request, splits=2, tile=TILE, **others):
    options = {"causal": request.causal, "scale": request.scale, "softcap": request.softcap, "sinks": request.sinks}
    config = Config(tile, splits, 1, 1)
    given = {**arguments(request), **options, "config": config, **others}
    return attention.attend(request.query, request.keys.rows, request.values.rows, **given)


def allowed(request, expected):
    return max(1.1 * error(reference.attend(request), expected), ROUNDING[request.query.dtype])


def check(request, **others):
    expected = exact(request)
    off = error(ours(request, **others), expected)
    assert off < allowed(request, expected), f"off by {off}, allowed are {allowed(request, expected)}"


@pytest.mark.parametrize(
    ("bits", "dim", "group_size"),
    [(bits, *row) for row in ROWS for bits in range(2, 9)] + [(bits, *row) for row in OTHER_ROWS for bits in (3, 4, 8)],
)
def test_all_rows(bits, dim, group_size):
    for dtype, symmetric in ((torch.bfloat16, False), (torch.float16, True), (torch.float32, bits % 2 == 1)):
        request = request_of(40, dim=dim, group_size=group_size, bits=bits, symmetric=symmetric, dtype=dtype, group=3)
        check(request, splits=1)


def test_which_rows_are_read_by_planes():
    for bits in range(2, 9):
        assert all(is_planar(*row) for row in ((128, bits, 128), (128, bits, 32), (256, bits, 64), (192, bits, 192)))
    assert is_planar(100, 4, 100)
    assert not is_planar(96, 4, 32)  # a plane of 24 codes
    assert not is_planar(80, 3, 80)  # 5 words for the third bits of two planes
    assert not is_planar(100, 8, 25)  # groups that begin within a word


def test_keys_and_values_of_different_bits_and_lengths():
    request = request_of(50, group=2, bits=8, dim=128)
    check(replace(request, values=request_of(50, bits=2, dim=64, group_size=32).values))


@pytest.mark.parametrize("tokens", [1, 2, TILE - 1, TILE, TILE + 1, 4 * TILE, 4 * TILE + 1, 300])
@pytest.mark.parametrize("splits", [1, 2, 8])
def test_all_lengths(tokens, splits):
    check(request_of(tokens, group=2, dtype=DTYPES[tokens % 2]), splits=splits)


@pytest.mark.parametrize(("group", "count"), [(1, 1), (4, 1), (7, 1), (9, 1), (16, 1), (1, 5), (3, 7), (2, 30)])
def test_heads_and_positions(group, count):
    check(request_of(50, count, group, batch=2), splits=1)
    check(request_of(60, count, group, heads=2, causal=True), splits=1)


def flags(generator, *shape):
    mask = torch.rand(*shape, generator=generator) > 0.3
    mask[..., -1] = True
    return mask


def masks(batch, heads, count, tokens, dtype):
    generator = torch.Generator().manual_seed(0)
    position, last = torch.arange(tokens), torch.arange(tokens - count, tokens)[:, None]
    window = (position <= last) & (position > last - 9)
    yield "flags", flags(generator, batch, 1, count, tokens)
    yield "flags of tokens", flags(generator, 1, tokens)
    yield "left padding", ((position >= tokens // 2) & (position <= last)).expand(batch, 1, count, tokens)
    yield "slopes", torch.randn(1, heads, 1, tokens, generator=generator).to(dtype)
    yield "a number for each query", torch.randn(batch, heads, count, 1, generator=generator)
    yield "a window", torch.zeros(1, 1, count, tokens, dtype=dtype).masked_fill(~window, -torch.inf)


@pytest.mark.parametrize(("count", "dtype"), [(1, torch.bfloat16), (6, torch.float16)])
def test_masks(count, dtype):
    for name, mask in masks(2, 2, count, 50, dtype):
        request = request_of(50, count, 2, 2, dtype=dtype, mask=mask)
        expected = exact(request)
        twin = replace(request, mask=mask.to(dtype) if mask.is_floating_point() else mask)  # torch takes no other
        assert error(ours(request, 1), expected) < allowed(twin, expected), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_caps_sinks_and_triangles(dtype):
    mask = flags(torch.Generator().manual_seed(1), 1, 1, 3, 70)
    check(request_of(70, 1, 4, 2, softcap=5.0, dtype=dtype))
    check(request_of(70, 3, 4, sinks=True, mask=mask, dtype=dtype))
    check(request_of(70, 5, 2, softcap=2.0, sinks=True, causal=True, bits=3, value_bits=8, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 4])
def test_a_window_is_the_mask_of_a_window(splits):
    for tokens, count, window, causal in (
        (130, 1, 9, False),
        (130, 1, 1000, False),
        (130, 5, 40, False),
        (80, 70, 9, True),
    ):
        request = request_of(tokens, count, causal=causal)
        last = torch.arange(count)[:, None] + (0 if causal else tokens - count)
        seen = torch.arange(tokens) > last - window
        masked = replace(request, mask=seen & (torch.arange(tokens) <= last) if causal else seen, causal=False)
        expected = exact(masked)
        assert error(ours(request, splits, window=window), expected) < allowed(masked, expected)


@pytest.mark.parametrize("given", [torch.tensor(45), torch.tensor([45]), torch.tensor([45, 3], dtype=torch.int32)])
def test_how_many_tokens_count_is_read_on_the_device(given):
    """Whatever lies behind them, and the grid does not change."""
    request = request_of(128, 2, 2, 2)
    for rows in (request.keys.rows, request.values.rows):
        for batch, count in enumerate(given.expand(2).tolist()):
            rows[batch, :, count:] = -1  # no number as a scale
    found = ours(request, 4, tokens=given, window=30)
    for batch, count in enumerate(given.expand(2).tolist()):
        part = Request(
            request.query[batch : batch + 1],
            *(KvRows(rows.rows[batch : batch + 1, :, :count], rows.format) for rows in (request.keys, request.values)),
            torch.arange(count) > torch.arange(count - 2, count)[:, None] - 30,
            False,
            request.scale,
        )
        assert error(found[batch : batch + 1], exact(part)) < allowed(part, exact(part))


def test_rows_in_a_larger_buffer_and_turned_queries():
    request = request_of(60, 3, 1, 2, heads=2, mask=flags(torch.Generator().manual_seed(1), 2, 1, 3, 60))
    expected = ours(request)
    roomy = []
    for rows in (request.keys, request.values):
        memory = torch.full((2, 2, 90, rows.rows.shape[-1] + 3), -1, dtype=torch.int16)
        memory[:, :, 10:70, :-3] = rows.rows
        roomy.append(KvRows(memory[:, :, 10:70, :-3], rows.format))
    query = request.query.transpose(1, 2).contiguous().transpose(1, 2)
    strided = replace(request, query=query, keys=roomy[0], values=roomy[1])
    assert torch.equal(ours(strided), expected)
    spread = torch.empty(*query.shape, 2, dtype=query.dtype)[..., 0].copy_(query)
    assert torch.equal(ours(replace(strided, query=spread)), expected)


def test_nothing_to_see():
    request = request_of(40, 2, mask=torch.ones(2, 40, dtype=torch.bool))
    request.mask[0] = False
    for others in ({}, {"softcap": 3.0}, {"sinks": torch.zeros(1)}, {"sinks": torch.full((1,), -torch.inf)}):
        out = ours(request, **others)
        assert not out[:, :, 0].any()
        assert out[:, :, 1].isfinite().all()
        assert out[:, :, 1].any()
    assert torch.equal(reference.attend(request)[:, :, 0], ours(request)[:, :, 0])
    empty = replace(request, keys=request.keys.part(0, 0), values=request.values.part(0, 0), mask=None)
    assert torch.equal(ours(empty), reference.attend(empty))
    none = request_of(70, batch=0)
    assert ours(none).shape == (0, 1, 1, 64)


def test_float16_keeps_small_weights_of_small_values():
    """One key takes nearly all of the weight and has a value of zero: the result is what all others leave."""
    generator = torch.Generator().manual_seed(0)
    tokens, dim = 400, 64
    keys = torch.zeros(1, 1, tokens, dim)
    keys[:, :, 5] = 1.0
    values = 0.01 * torch.randn(1, 1, tokens, dim, generator=generator) + 0.02
    values[:, :, 5] = 0.0
    query = torch.full((1, 1, 1, dim), 1.0)
    keys, values, query = (x.to(torch.float16) for x in (keys, values, query))
    request = Request(query, rows_of(keys, 8, 64), rows_of(values, 8, 64), None, False, 10.0 / dim)
    assert error(ours(request, 1), exact(request)) < 2e-3
    larger = rows_of(values * 20000.0, 8, 64)
    request = replace(request, values=larger)
    assert error(ours(request, 1), exact(request)) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", ["query", "keys", "values"])
def test_what_is_no_number_is_not_hidden(part, dtype):
    request = request_of(70, heads=2, dtype=dtype)
    before = ours(request)
    if part == "query":
        request.query[0, 1, 0, 3] = torch.nan
    else:
        words = getattr(request, part).rows
        words[0, 1, 40, 16 : 16 + dtype.itemsize // 2] = -1  # the scale of one token
    out = ours(request)
    assert out[0, 1].isnan().all()
    assert torch.equal(out[0, 0], before[0, 0])


@pytest.mark.parametrize("kind", ["flags", "numbers"])
def test_nothing_is_read_of_tiles_that_the_mask_hides(kind):
    """As of a static cache beyond what was written, and of padding: rows there are no numbers, and nobody sees them."""
    seen = torch.zeros(1, 1, 1, 8 * TILE, dtype=torch.bool)
    seen[..., 2 * TILE + 1 : 3 * TILE], seen[..., 6 * TILE] = True, True
    mask = seen if kind == "flags" else torch.where(seen, 0.0, -torch.inf).bfloat16()
    request = request_of(8 * TILE, group=2, mask=mask)
    expected = ours(request)
    for rows in (request.keys.rows, request.values.rows):
        tiles = rows.unflatten(2, (8, TILE))
        tiles[:, :, [0, 1, 3, 4, 5, 7], :, 16] = -1  # the scale
    assert torch.equal(ours(request), expected)
    assert expected.isfinite().all()
    request.values.rows[:, :, 2 * TILE, 16] = -1  # hidden, in a tile that is read
    assert ours(request).isnan().all()


def test_a_negative_scale():
    request = request_of(70)
    check(replace(request, scale=-0.2))
    check(replace(request, scale=0.0))


def test_results_repeat_bit_by_bit():
    request = request_of(300, 1, 4)
    assert torch.equal(ours(request, 8), ours(request, 8))


def test_mistakes_are_noticed():
    """The comparison itself is alive: a scale that is a little off, one zero point, one token too few."""
    request = request_of(70, group=3)
    expected = exact(request)
    limit = allowed(request, expected)
    assert error(ours(request, scale=request.scale * 1.02), expected) > limit
    assert error(ours(request, tokens=torch.tensor(69)), expected) > limit
    request.values.rows[..., -1] ^= 1
    assert error(ours(request), expected) > limit


def test_what_does_not_fit_is_refused():
    request = request_of()
    query, keys, values = request.query, request.keys.rows, request.values.rows
    given = arguments(request)
    assert attention.refuses(query, keys, values, **given) is None
    for change, reason in (
        ({"key_bits": 5}, "rows of"),
        ({"value_bits": 1}, "1 bits"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": 2}, "groups"),
        ({"value_dim": 512}, "512"),
        ({"mask": torch.zeros(70, dtype=torch.int32)}, "mask"),
        ({"tokens": torch.tensor([1, 2])}, "tokens"),
        ({"tokens": torch.tensor(1.0)}, "tokens"),
    ):
        assert reason in attention.refuses(query, keys, values, **{**given, **change})
    assert "float64" in attention.refuses(query.double(), keys, values, **given)
    assert "int16" in attention.refuses(query, keys.int(), values, **given)
    assert "queries of one key head" in attention.refuses(query.repeat(1, 1, 129, 1), keys, values, **given)
    assert "not those" in attention.refuses(query.repeat(2, 1, 1, 1), keys, values, **given)
    with pytest.raises(ValueError, match="not those"):
        attention.attend(query.repeat(2, 1, 1, 1), keys, values, scale=1.0, **given)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("capacity", [0, 1, 100, 4096, 131072])
def test_the_default_configuration(capacity, batch):
    """Stretches are a power of two, no more than there are tiles."""
    query = torch.empty(batch, 32, 1, 128, dtype=torch.bfloat16)
    for bits in (2, 3, 4, 8):
        config = attention.default_config(query, 8, capacity, value_bits=bits, value_dim=128, value_group_size=64)
        assert config.SPLITS & (config.SPLITS - 1) == 0
        assert max(capacity, config.BLOCK_T) >= config.SPLITS * config.BLOCK_T


@pytest.mark.parametrize("config", [Config(24, 1, 1, 1), Config(8, 1, 1, 1), Config(64, 3, 1, 1), Config(64, 0, 1, 1)])
def test_configurations_that_are_none(config):
    with pytest.raises(ValueError, match="powers of two"):
        ours(request_of(), config=config)


def test_it_runs_as_configured():
    request = request_of(300, 1, 4, dtype=torch.float16)
    found = attention.attend(
        request.query, request.keys.rows, request.values.rows, scale=request.scale, **arguments(request)
    )
    assert error(found, exact(request)) < allowed(request, exact(request))
