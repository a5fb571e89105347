"""PackedTensor: what it holds means the simulated values, and takes the bytes that the scheme says."""

import copy

import pytest
import torch
from exactness import DTYPES, random_groups, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf import native
from qllm_hf import packed as packed_module
from qllm_hf.packed import PackedTensor, packed_shapes
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize, quantize

specs = st.builds(Spec, st.integers(2, 8), st.sampled_from((-1, 0, 16, 32, 128)), st.booleans(), st.just(False))


@settings(max_examples=200, deadline=None)
@given(
    spec=specs,
    dtype=st.sampled_from(DTYPES),
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    length=st.sampled_from((1, 16, 64, 80, 128, 172, 300)),
    seed=st.integers(0, 2**32),
)
def test_packed_means_the_simulated_values(spec, dtype, rows, length, seed):
    x = torch.randn(*rows, length, generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed = PackedTensor.encode(x, spec)
    assert same_bits(packed.decode(), fake_quantize(x, spec)).all()
    assert packed.codes().equal(quantize(x, spec).codes)
    for part, (shape, part_dtype) in packed_shapes(tuple(x.shape), spec, dtype).items():
        tensor = getattr(packed, part)
        assert (tensor.shape, tensor.dtype) == (shape, part_dtype)
    assert (packed.zero_point is None) == spec.symmetric
    parameters = packed.scale.numel() * (dtype.itemsize + (not spec.symmetric))
    in_rows = x[..., 0].numel() * spec.row_bits(length, 8 * dtype.itemsize) / 8
    assert packed.nbytes() == in_rows + (parameters if spec.group_size == 0 else 0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_takes_the_bits_of_its_name(bits):
    """[4096, 4096] in float16, groups of 128: b bits, a 16-bit scale and an 8-bit zero point a group."""
    shapes = packed_shapes((4096, 4096), Spec(bits), torch.float16)
    total = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes.values())
    assert total * 8 / 4096**2 == bits + 24 / 128


def test_paper_exact_is_kept_through_packing():
    x = (5 + torch.rand(4, 128)).bfloat16()
    spec = Spec(4, paper_exact=True)
    assert same_bits(PackedTensor.encode(x, spec).decode(), fake_quantize(x, spec)).all()
    assert PackedTensor.encode(x, spec).decode().max() < 1.1, "the published fate of a one-sided group"


@pytest.mark.parametrize("group_size", [32, -1, 0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_part_of_the_first_dimension(group_size, symmetric):
    """An expert of three; and rows, where they have scales of their own."""
    packed = PackedTensor.encode(torch.randn(3, 4, 64), Spec(4, group_size, symmetric))
    assert packed.part(1).decode().equal(packed.decode()[1])
    assert packed.part(slice(1, 3)).decode().equal(packed.decode()[1:])
    if group_size != 0:
        assert packed.part(2).part(slice(1, 3)).decode().equal(packed.decode()[2, 1:3])
    assert not packed.part(1).decode().equal(packed.decode()[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70, 172), (3, 50, 64), (4, 3000)])
@pytest.mark.parametrize("spec", [Spec(3, 32), Spec(4, -1, True), Spec(4, 0), Spec(8, 128)], ids=str)
def test_large_weights_are_packed_piece_by_piece_with_the_same_result(monkeypatch, dtype, shape, spec):
    weight = torch.randn(shape).to(dtype)
    encoded = []
    encode = PackedTensor.encode
    monkeypatch.setattr(packed_module, "_PIECE", 1000)
    monkeypatch.setattr(native, "is_there", lambda: False)  # kernels need no pieces
    monkeypatch.setattr(PackedTensor, "encode", lambda x, spec: encoded.append(x.numel()) or encode(x, spec))
    in_pieces, whole = PackedTensor.encode_weight(weight, spec), encode(weight, spec)
    for part in ("words", "scale", "zero_point"):
        left, right = getattr(in_pieces, part), getattr(whole, part)
        assert (left is None and right is None) or (left.equal(right) and left.dtype == right.dtype)
    assert in_pieces[3:] == whole[3:]
    assert max(encoded) <= (weight.numel() if spec.group_size == 0 else max(1000, shape[-1]))


def test_decode_into_another_dtype():
    packed = PackedTensor.encode(random_groups(8, 128), Spec(4))
    assert packed.decode(torch.float16).equal(packed.decode().half())


@pytest.mark.parametrize("part", ["words", "scale", "zero_point"])
def test_every_part_counts(part):
    packed = PackedTensor.encode(random_groups(8, 128), Spec(4))
    other = packed._replace(**{part: getattr(packed, part).roll(1, 0)})
    assert not other.decode().equal(packed.decode())


def test_copies_are_independent():
    packed = PackedTensor.encode(random_groups(8, 128), Spec(4))
    before, clone = packed.decode(), copy.deepcopy(packed)
    clone.words.zero_()
    assert packed.decode().equal(before)
    assert not clone.decode().equal(before)
