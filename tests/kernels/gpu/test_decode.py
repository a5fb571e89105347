"""Packed tensors and rows to floats: bit for bit what torch computes."""

import pytest
import torch

pytest.importorskip("triton")

from qllm_hf.kv_rows import RowFormat
from qllm_hf.ops import reference
from qllm_hf.packed import decode_reference, encode_reference
from qllm_hf.scheme import Spec
from qllm_kernels.gpu import decode as kernels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# One block, several, a short last block of each kind (a word, a plane, nearly whole), and less than a word.
LENGTHS = (128, 384, 129, 200, 255, 96, 33, 1)
GROUP_SIZES = (32, 64, 128, 256, -1)


def packed_of(shape, bits, group_size=128, symmetric=False, dtype=torch.bfloat16, scale_dtype=None, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return encode_reference(x, Spec(bits, group_size, symmetric), scale_dtype)


def decoded(packed, dtype):
    words, scale, zero_point, spec, length = packed
    return kernels.decode(
        words, scale, zero_point, bits=spec.bits, group_size=spec.group_size, length=length, dtype=dtype
    )


def rows_of(shape, spec, dtype, seed=0):
    form = RowFormat(spec, shape[-1], dtype)
    return form, form.encode_reference(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def decoded_rows(form, rows):
    spec = form.spec
    return kernels.decode_rows(
        rows,
        bits=spec.bits,
        group_size=spec.group_size,
        symmetric=spec.symmetric,
        length=form.length,
        dtype=form.dtype,
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_all_lengths(bits, length):
    packed = packed_of((3, length), bits)
    assert torch.equal(decoded(packed, torch.bfloat16), decode_reference(packed))


@pytest.mark.parametrize("symmetric", (False, True))
@pytest.mark.parametrize("group_size", (*GROUP_SIZES, 96, 20, 1, 0))
def test_all_groups(group_size, symmetric):
    for bits in (3, 8):
        packed = packed_of((5, 300), bits, group_size, symmetric)
        assert torch.equal(decoded(packed, torch.bfloat16), decode_reference(packed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_all_types(dtype, scale_dtype):
    for symmetric in (False, True):
        packed = packed_of((4, 256), 4, 64, symmetric, scale_dtype=scale_dtype)
        assert torch.equal(decoded(packed, dtype), decode_reference(packed, dtype))


def test_what_is_not_finite_stays_so():
    packed = packed_of((2, 256), 4)
    packed.scale[0, 0], packed.scale[1, 1] = torch.nan, torch.inf
    ours, theirs = decoded(packed, torch.bfloat16), decode_reference(packed)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert torch.equal(ours[theirs.isfinite()], theirs[theirs.isfinite()])
    assert torch.equal(ours.isnan(), theirs.isnan())


def test_many_dimensions_and_parts():
    packed = packed_of((2, 3, 5, 160), 5, 32)
    assert torch.equal(decoded(packed, torch.bfloat16), decode_reference(packed))
    part = packed.part(1)
    assert torch.equal(decoded(part, torch.bfloat16), decode_reference(part))


def test_rows_beyond_a_tile():
    packed = packed_of((kernels._ELEMENTS // 128 + 3, 128), 2)
    assert torch.equal(decoded(packed, torch.bfloat16), decode_reference(packed))


def test_nothing_to_decode():
    packed = packed_of((1, 128), 4)
    assert decoded(packed.part(slice(0, 0)), torch.bfloat16).shape == (0, 128)
    rows = torch.empty(1, 2, 0, 35, dtype=torch.int16)
    form = RowFormat(Spec(4, 64), 128, torch.bfloat16)
    assert decoded_rows(form, rows).shape == (1, 2, 0, 128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_of_all_types(bits, dtype):
    """With zero points or without, in turns."""
    form, rows = rows_of((2, 2, 5, 64), Spec(bits, 32, bool((bits + DTYPES.index(dtype)) % 2)), dtype)
    assert torch.equal(decoded_rows(form, rows), form.decode_reference(rows))


@pytest.mark.parametrize(
    ("length", "group_size"),
    [(128, 64), (128, 32), (128, 128), (256, 128), (256, -1), (96, 96), (80, 80), (192, 96), (20, 10), (8, 8)],
)
def test_rows_of_all_heads(length, group_size):
    for symmetric in (False, True):
        form, rows = rows_of((1, 2, 3, length), Spec(4, group_size, symmetric), torch.bfloat16)
        assert torch.equal(decoded_rows(form, rows), form.decode_reference(rows))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_rows_with_any_strides(dtype):
    """Tokens before heads, a buffer that is longer than what is in it, and one row for all sequences."""
    form, rows = rows_of((2, 70, 3, 128), Spec(4, 64), dtype)
    room = torch.zeros(2, 3, 90, rows.shape[-1] + 5, dtype=torch.int16)
    room[:, :, :70, : rows.shape[-1]] = rows.transpose(1, 2)
    expected = form.decode_reference(rows.transpose(1, 2))
    for view in (rows.transpose(1, 2), room[:, :, :70, : rows.shape[-1]]):
        assert torch.equal(decoded_rows(form, view), expected)
    alike = rows.transpose(1, 2)[:1, :1].expand(2, 3, -1, -1)
    assert torch.equal(decoded_rows(form, alike), expected[:1, :1].expand(2, 3, -1, -1))


@pytest.mark.parametrize("bias", (False, True))
def test_linear(bias):
    packed = packed_of((48, 160), 4, 32, dtype=torch.float32)
    x = torch.randn(2, 3, 160)
    bias = torch.randn(48) if bias else None
    words, scale, zero_point, spec, length = packed
    ours = kernels.linear_by_decoding(
        x, words, scale, zero_point, bits=spec.bits, group_size=spec.group_size, length=length, bias=bias
    )
    assert torch.equal(ours, reference.linear(x, packed, bias, None))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 9}, "9 bits"),
        ({"group_size": -2}, "group_size=-2"),
        ({"dtype": torch.float64}, "float64"),
        ({"scale_dtype": torch.float64}, "float64"),
        ({"words": torch.zeros(2, 32, dtype=torch.int32)}, "int32"),
        ({"words": torch.zeros(32, 2, dtype=torch.int16).T}, "contiguous"),
    ],
)
def test_refusals(change, reason):
    request = {"words": torch.zeros(2, 32, dtype=torch.int16), "bits": 4, "group_size": 128, "length": 128}
    request |= {"dtype": torch.bfloat16} | change
    assert reason in kernels.refuses(request.pop("words"), **request)


def test_shapes_that_do_not_fit():
    words, scale, zero_point, _, _ = packed_of((2, 128), 4)
    rest = {"bits": 4, "group_size": 128, "dtype": torch.bfloat16}
    with pytest.raises(ValueError, match="take 33 words"):
        kernels.decode(words, scale, zero_point, length=132, **rest)
    with pytest.raises(ValueError, match="scales"):
        kernels.decode(words, scale[:1], zero_point, length=128, **rest)
    with pytest.raises(ValueError, match="zero points"):
        kernels.decode(words, scale, zero_point[:1], length=128, **rest)
    with pytest.raises(ValueError, match="rows"):
        kernels.decode_rows(
            torch.zeros(1, 1, 2, 34, dtype=torch.int16), symmetric=False, length=128, **rest | {"group_size": 64}
        )


def test_a_wrong_kernel_is_noticed(monkeypatch):
    """Rounding that cuts, and a field at the wrong bits."""
    packed = packed_of((3, 200), 3)
    monkeypatch.setattr(kernels, "rounded", lambda x, dtype: x.to(dtype))
    assert not torch.equal(decoded(packed, torch.bfloat16), decode_reference(packed))
    monkeypatch.undo()
    monkeypatch.setattr("qllm_kernels.gpu.planar.wider_bits", lambda bits, width: 0)
    assert not torch.equal(decoded(packed, torch.bfloat16), decode_reference(packed))
