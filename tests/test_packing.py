"""The packed layout: dense, as drawn in qllm_hf/layout.py, and cut at any multiple of 128 codes."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.errors import CheckpointError, SchemeError
from qllm_hf.layout import BLOCK, FIELDS, group_count, row_words
from qllm_hf.packing import pack, unpack

ALL_BITS = range(2, 9)
every_width = pytest.mark.parametrize("bits", ALL_BITS)


def random_codes(bits: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def bits_of(words: torch.Tensor, word: int, low: int, width: int) -> int:
    """Bits low .. low + width - 1 of one word, read with Python integers."""
    return ((int(words[word]) & 0xFFFF) >> low) & (2**width - 1)


@settings(max_examples=300, deadline=None)
@given(
    bits=st.sampled_from(ALL_BITS),
    length=st.integers(0, 1000),
    rows=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_round_trip(bits, length, rows, seed):
    codes = random_codes(bits, *rows, length, seed=seed)
    words = pack(codes, bits)
    assert (words.dtype, words.shape) == (torch.int16, (*rows, row_words(length, bits)))
    assert unpack(words, bits, length).equal(codes)


@every_width
def test_every_code_survives(bits):
    codes = torch.arange(2**bits, dtype=torch.uint8)
    assert unpack(pack(codes, bits), bits, len(codes)).equal(codes)


@every_width
def test_codes_that_are_not_contiguous(bits):
    codes = random_codes(bits, 200, 6)
    assert pack(codes.t(), bits).equal(pack(codes.t().contiguous(), bits))
    words = pack(codes.t(), bits)
    assert unpack(words.t().contiguous().t(), bits, 200).equal(codes.t())


# Size


@every_width
def test_multiples_of_a_block_have_no_waste(bits):
    for length in (128, 256, 4096):
        assert row_words(length, bits) * 16 == length * bits


@settings(max_examples=500, deadline=None)
@given(bits=st.sampled_from(ALL_BITS), length=st.integers(1, 5000))
def test_waste_is_below_one_word_a_field(bits, length):
    waste = row_words(length, bits) * 16 - length * bits
    assert 0 <= waste < 16 * len(FIELDS[bits])
    assert sum(FIELDS[bits]) == bits


def test_group_count():
    assert [group_count(100, size) for size in (1, 32, 50, 100, 128, -1, 0)] == [100, 4, 2, 1, 1, 1, 1]


# The drawing


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("length", [128, 100, 13])
def test_one_field_is_planar(bits, length):
    """Code j * words + i in bits bits*j .. bits*j + bits - 1 of word i."""
    codes = random_codes(bits, length)
    words = pack(codes, bits)
    assert len(words) == -(-length * bits // 16)
    for number, code in enumerate(codes.tolist()):
        plane, word = divmod(number, len(words))
        assert bits_of(words, word, plane * bits, bits) == code


def test_drawing_of_4_bits():
    words = pack(random_codes(4, 128), 4)
    codes = random_codes(4, 128)
    assert [bits_of(words, 0, low, 4) for low in (0, 4, 8, 12)] == codes[[0, 32, 64, 96]].tolist()
    assert [bits_of(words, 31, low, 4) for low in (0, 4, 8, 12)] == codes[[31, 63, 95, 127]].tolist()


def test_drawing_of_3_bits():
    codes = random_codes(3, 128)
    words = pack(codes, 3)
    assert len(words) == 24
    assert [bits_of(words, 0, low, 2) for low in range(0, 16, 2)] == (codes[0:128:16] & 3).tolist()
    assert [bits_of(words, 15, low, 2) for low in range(0, 16, 2)] == (codes[15:128:16] & 3).tolist()
    assert [bits_of(words, 16, low, 1) for low in range(16)] == (codes[0:128:8] >> 2).tolist()
    assert [bits_of(words, 23, low, 1) for low in range(16)] == (codes[7:128:8] >> 2).tolist()


@pytest.mark.parametrize(("bits", "widths"), [(3, (2, 1)), (5, (4, 1)), (6, (4, 2)), (7, (4, 2, 1))])
@pytest.mark.parametrize("length", [128, 45])
def test_fields_follow_each_other_widest_first(bits, widths, length):
    """A code of several fields is each part of it, packed as a code of that width."""
    codes = random_codes(bits, length)
    words, start, shift = pack(codes, bits), 0, 0
    for width in widths:
        count = -(-length * width // 16)
        part = words[start : start + count]
        for number, code in enumerate(codes.tolist()):
            plane, word = divmod(number, count)
            assert bits_of(part, word, plane * width, width) == (code >> shift) & (2**width - 1)
        start, shift = start + count, shift + width
    assert start == len(words)


@pytest.mark.parametrize("length", [128, 7])
def test_8_bits_are_the_bytes_in_order(length):
    codes = random_codes(8, length)
    words = pack(codes, 8)
    for number, code in enumerate(codes.tolist()):
        assert bits_of(words, number // 2, number % 2 * 8, 8) == code


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("group", range(4))
def test_a_plane_lies_within_one_group_of_32(bits, group):
    """With only that group's codes set, the same bit position is set in all words of a field or in none."""
    codes = torch.zeros(BLOCK, dtype=torch.uint8)
    codes[group * 32 : group * 32 + 32] = 2**bits - 1
    words, start = pack(codes, bits), 0
    for width in FIELDS[bits]:
        count = BLOCK * width // 16
        part = words[start : start + count].tolist()
        assert len(set(part)) == 1
        assert bin(part[0] & 0xFFFF).count("1") == 4, "a quarter of the bits"
        start += count


# Cuts and damage


@settings(max_examples=100, deadline=None)
@given(
    bits=st.sampled_from(ALL_BITS),
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    rest=st.integers(0, 127),
    seed=st.integers(0, 2**32),
)
def test_a_row_can_be_cut_at_any_block(bits, blocks, rest, seed):
    lengths = [count * BLOCK for count in blocks] + [rest] * (rest > 0)
    parts = [random_codes(bits, 2, length, seed=seed + i) for i, length in enumerate(lengths)]
    assert torch.cat([pack(part, bits) for part in parts], -1).equal(pack(torch.cat(parts, -1), bits))


def test_a_cut_elsewhere_is_another_row():
    codes = random_codes(4, 128)
    assert not torch.cat([pack(codes[:64], 4), pack(codes[64:], 4)]).equal(pack(codes, 4))


@every_width
@pytest.mark.parametrize("length", [128, 300])
def test_a_damaged_word_changes_only_the_codes_it_holds(bits, length):
    """At most 16 / width codes for a word of a field of that width; in another block, none."""
    codes = random_codes(bits, length)
    words = pack(codes, bits)
    reached = torch.zeros(length, dtype=torch.bool)
    for i in range(len(words)):
        damaged = words.clone()
        damaged[i] = ~damaged[i]
        changed = unpack(damaged, bits, length) != codes
        assert changed.sum() <= 16 // min(FIELDS[bits])
        blocks = (changed.nonzero() // BLOCK).unique()
        assert len(blocks) <= 1
        reached |= changed
    assert reached.all(), "every code depends on some word"


# Refusals


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -4])
def test_impossible_width(bits):
    with pytest.raises(SchemeError, match=f"bits={bits}: packing takes 2 to 8 bits"):
        pack(torch.zeros(4, dtype=torch.uint8), bits)
    with pytest.raises(SchemeError, match=f"bits={bits}: packing takes 2 to 8 bits"):
        unpack(torch.zeros(4, dtype=torch.int16), bits, 4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.float32])
def test_codes_of_another_dtype(dtype):
    with pytest.raises(SchemeError, match=re.escape(f"pack takes uint8 codes, not {dtype}.")):
        pack(torch.zeros(4, dtype=dtype), 4)


@pytest.mark.parametrize(("count", "dtype"), [(31, torch.int16), (33, torch.int16), (0, torch.int16), (32, torch.int8)])
def test_words_that_do_not_fit(count, dtype):
    with pytest.raises(CheckpointError, match=f"128 codes of 4 bits take 32 int16 words, got {count} of {dtype}"):
        unpack(torch.zeros(2, count, dtype=dtype), 4, 128)
