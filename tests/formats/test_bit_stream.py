"""The dense stream of bits: every code where compressed-tensors looks for it."""

import pytest
import torch
from checkpoints import read_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.errors import CheckpointError, SchemeError
from qllm_hf.formats.bit_stream import pack_stream, stream_words, unpack_stream

ALL_BITS = range(1, 9)
every_width = pytest.mark.parametrize("bits", ALL_BITS)


def random_codes(bits: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def row_as_integer(words: torch.Tensor) -> int:
    """A row of words as one long integer, by Python's own arithmetic."""
    return sum((int(word) & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))


@settings(max_examples=100, deadline=None)
@given(
    bits=st.sampled_from(ALL_BITS),
    length=st.integers(0, 300),
    rows=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_round_trip(bits, length, rows, seed):
    codes = random_codes(bits, *rows, length, seed=seed)
    words = pack_stream(codes, bits)
    assert (words.dtype, words.shape) == (torch.int32, (*rows, stream_words(length, bits)))
    assert unpack_stream(words, bits, length).equal(codes)


@every_width
def test_code_i_takes_the_bits_from_i_times_b(bits):
    codes = random_codes(bits, 77)
    expected = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    assert row_as_integer(pack_stream(codes, bits)) == expected
    assert row_as_integer(pack_stream(codes.flip(0), bits)) != expected


@every_width
@pytest.mark.parametrize("length", [32, 96, 41])
def test_compressed_tensors_writes_the_same_words(bits, length):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    if not read_bits([bits]):
        pytest.skip("this compressed-tensors has another layout for these bits")
    codes = random_codes(bits, 3, length)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    words = helpers.pack_to_int32(signed, bits)
    assert pack_stream(codes, bits).equal(words)
    assert unpack_stream(words, bits, length).equal(codes)


@every_width
def test_codes_that_are_not_contiguous(bits):
    codes = random_codes(bits, 50, 6)
    words = pack_stream(codes.t(), bits)
    assert words.equal(pack_stream(codes.t().contiguous(), bits))
    assert unpack_stream(words.t().contiguous().t(), bits, 50).equal(codes.t())


def test_what_is_refused():
    with pytest.raises(SchemeError, match="uint8"):
        pack_stream(torch.zeros(4, dtype=torch.int8), 4)
    for bits in (0, 9):
        with pytest.raises(SchemeError, match="1 to 8"):
            pack_stream(random_codes(4, 4), bits)
        with pytest.raises(SchemeError, match="1 to 8"):
            unpack_stream(torch.zeros(1, dtype=torch.int32), bits, 4)
    with pytest.raises(CheckpointError, match="40 codes of 3 bits take 4 int32 words, got 3"):
        unpack_stream(torch.zeros(3, dtype=torch.int32), 3, 40)
    with pytest.raises(CheckpointError, match="int16"):
        unpack_stream(torch.zeros(4, dtype=torch.int16), 3, 40)
