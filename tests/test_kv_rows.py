"""Keys and values as rows of words: what a cache does to rows is what it would do to the vectors."""

import pytest
import torch
from exactness import DTYPES, same_bits

from qllm_hf.kv_rows import KvFormat, RowFormat
from qllm_hf.layout import row_words
from qllm_hf.rotation import rotate
from qllm_hf.scheme import Scheme, Spec
from qllm_hf.uniform import fake_quantize

HEAD_DIMS = (8, 64, 80, 96, 128, 256)
# Groups to a head: one, an even and an odd number of them.
SPECS = {
    "one group": lambda head_dim, bits, symmetric: Spec(bits, head_dim, symmetric),
    "four groups": lambda head_dim, bits, symmetric: Spec(bits, head_dim // 4, symmetric),
    "odd groups": lambda head_dim, bits, symmetric: Spec(bits, -(-head_dim // 5), symmetric),
}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
symmetries = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])

# What transformers' cache layers do with keys and values [B, H, T, ...].
OPERATIONS = {
    "append": lambda x: torch.cat([x, x[:, :, -2:]], dim=-2),
    "crop": lambda x: x[..., :-2, :],
    "slide": lambda x: x[:, :, -3:, :],
    "reorder": lambda x: x.index_select(0, torch.tensor([1, 1])),
    "repeat": lambda x: x.repeat_interleave(3, dim=0),
    "select": lambda x: x[torch.tensor([1]), ...],
    "roll": lambda x: x.roll(-1, dims=-2),
    "index copy": lambda x: x.clone().index_copy_(2, torch.tensor([0, 3]), x[:, :, :2]),
    "transpose": lambda x: x.transpose(1, 2),
    "expand": lambda x: x[:1].expand(4, -1, -1, -1),
    "nothing left": lambda x: x[..., :0, :],
}


@dtypes
@symmetries
@pytest.mark.parametrize("groups", SPECS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rows_mean_the_simulated_values(dtype, symmetric, groups, head_dim):
    x = torch.randn(2, 3, 5, head_dim).to(dtype)
    for bits in range(2, 9):
        spec = SPECS[groups](head_dim, bits, symmetric)
        rows_format = RowFormat(spec, head_dim, dtype)
        rows = rows_format.encode(x)
        assert (rows.dtype, rows.shape) == (torch.int16, (2, 3, 5, rows_format.words))
        assert rows.is_contiguous()
        decoded = rows_format.decode(rows)
        assert decoded.dtype == dtype
        assert same_bits(decoded, fake_quantize(x, spec)).all()


@dtypes
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotated_rows_mean_turned_vectors(dtype, head_dim):
    x = torch.randn(2, 3, 5, head_dim).to(dtype)
    x[..., 3] *= 30
    rotated = KvFormat(Scheme(kv=4, kv_rotate_keys=True)).keys(x)
    rows, stored = rotated.encode(x), rotated.as_stored()
    assert rotated.rotated
    assert rotated.words == stored.words
    assert rows.equal(stored.encode(rotate(x)))
    assert rows.equal(rotated.encode_reference(x))
    assert same_bits(rotated.decode(rows), rotate(stored.decode(rows))).all()
    assert same_bits(rotated.decode(rows), rotated.simulate(x)).all()
    errors = [(form.decode(form.encode(x)) - x).double().norm() for form in (rotated, stored)]
    assert errors[0] < (0.8 if head_dim > 8 else 1) * errors[1]


def test_only_keys_are_turned():
    kv_format = KvFormat(Scheme(kv=4, kv_rotate_keys=True))
    assert not kv_format.values(torch.empty(1, 1, 1, 64)).rotated
    assert not kv_format.keys(torch.empty(1, 1, 1, 65)).rotated, "an odd length has nothing to turn"
    assert str(kv_format) == "KV4 (turned)"


@dtypes
@symmetries
@pytest.mark.parametrize("groups", SPECS)
def test_size_of_a_row(dtype, symmetric, groups):
    """Codes, scales, a byte a zero point rounded up to a word: at most 15 bits above what the scheme says."""
    for head_dim in HEAD_DIMS:
        for bits in range(2, 9):
            spec = SPECS[groups](head_dim, bits, symmetric)
            count = -(-head_dim // spec.group_size)
            zero_words = 0 if symmetric else (count + 1) // 2
            words = RowFormat(spec, head_dim, dtype).words
            assert words == row_words(head_dim, bits) + count * dtype.itemsize // 2 + zero_words
            assert 0 <= words * 16 - spec.row_bits(head_dim, 8 * dtype.itemsize) <= 8


def test_size_of_common_rows():
    """Head dim 128 in float16: 256 bytes in floating point."""
    words = {bits: RowFormat(Spec(bits, 128), 128, torch.float16).words for bits in (2, 3, 4, 8)}
    assert {bits: count * 2 for bits, count in words.items()} == {2: 36, 3: 52, 4: 68, 8: 132}


@pytest.mark.parametrize("operation", OPERATIONS)
@dtypes
@symmetries
@pytest.mark.parametrize(("head_dim", "group_size"), [(8, 8), (80, 16), (128, 32)])
def test_operations_commute_with_decode(operation, dtype, symmetric, head_dim, group_size):
    x = torch.randn(2, 3, 5, head_dim).to(dtype)
    for spec in (Spec(4, group_size, symmetric), Spec(3, group_size, symmetric), None):
        rows_format = RowFormat(spec, head_dim, dtype)
        rows, run = rows_format.encode(x), OPERATIONS[operation]
        on_rows, on_vectors = rows_format.decode(run(rows)), run(rows_format.decode(rows))
        assert on_rows.shape == on_vectors.shape
        assert same_bits(on_rows, on_vectors).all()


def test_an_operation_along_the_row_would_be_noticed():
    rows_format = RowFormat(Spec(4, 64), 64, torch.float32)
    rows = rows_format.encode(torch.randn(2, 3, 5, 64))
    assert not rows_format.decode(rows.roll(1, -1)).equal(rows_format.decode(rows).roll(1, -1))


def test_tokens_written_one_by_one_have_the_same_rows():
    """A token is quantized on its own, so when it came does not matter."""
    x = torch.randn(1, 2, 6, 64)
    rows_format = RowFormat(Spec(4, 64), 64, torch.float32)
    one_by_one = torch.cat([rows_format.encode(x[:, :, t : t + 1]) for t in range(6)], -2)
    assert one_by_one.equal(rows_format.encode(x))


@dtypes
def test_without_a_spec_the_bits_pass_through(dtype):
    """NaN, infinities, both zeros and denormals included."""
    tiny = torch.finfo(dtype).smallest_normal
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, tiny / 2, 1.5, -tiny])
    x = torch.cat([special, torch.randn(8)]).to(dtype).reshape(1, 2, 1, 8)
    rows_format = RowFormat(None, 8, dtype)
    rows = rows_format.encode(x)
    assert rows.shape[-1] == rows_format.words == 8 * dtype.itemsize // 2
    assert same_bits(rows_format.decode(rows), x).all()


def test_vectors_that_are_not_contiguous():
    """Keys come as [B, T, H, D] transposed; a cropped cache hands over slices of rows."""
    x = torch.randn(2, 5, 3, 64).transpose(1, 2)
    for spec in (Spec(4, 64), None):
        rows_format = RowFormat(spec, 64, torch.float32)
        rows = rows_format.encode(x)
        assert rows.equal(rows_format.encode(x.contiguous()))
        assert rows_format.decode(rows[:, ::2]).equal(rows_format.decode(rows)[:, ::2])


def test_decoded_vectors_are_copies():
    for spec in (Spec(4, 64), None):
        rows_format = RowFormat(spec, 64, torch.float32)
        rows = rows_format.encode(torch.randn(1, 1, 2, 64))
        before = rows.clone()
        rows_format.decode(rows).zero_()
        assert rows.equal(before)


def test_formats_of_keys_and_values():
    keys, values = torch.empty(1, 2, 3, 96).half(), torch.empty(1, 2, 3, 64).half()
    both = KvFormat(Scheme(w=4, kv=4, kv_group_size=64))
    assert both.keys(keys) == RowFormat(Spec(4, 48), 96, torch.float16)
    assert both.values(values) == RowFormat(Spec(4, 64), 64, torch.float16)
    assert str(both) == "KV4g64"
    keys_only = KvFormat(Scheme(kv=4), keys_only=True)
    assert keys_only.keys(keys).spec == Spec(4, 96)
    assert keys_only.values(values).spec is None
    assert str(keys_only) == "KV4 (keys only)"
