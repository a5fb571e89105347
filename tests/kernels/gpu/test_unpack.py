"""Words to codes in registers: the assembly, run on all words here, and its twins in Triton's interpreter."""

import itertools
import re

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from ptx import run  # noqa: E402

from qllm_hf.packing import pack  # noqa: E402
from qllm_kernels.gpu import unpack  # noqa: E402

DTYPES = (tl.float16, tl.bfloat16)
BITS = range(2, 9)
WORDS = np.arange(2**16, dtype=np.uint32)
NEIGHBOURS = np.random.default_rng(0).permutation(WORDS)  # words in the other half of each register


def both_halves(lower, upper):
    return (upper << 16) | lower


def halves(registers):
    return registers & 0xFFFF, registers >> 16


def floats(bits, dtype):
    """Words as numbers of a 16-bit type, in float64."""
    if dtype == tl.float16:
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def positions(dtype, width):
    return range(unpack._mantissa(dtype) - width + 1)


def code_cases():
    for dtype, width in itertools.product(DTYPES, (1, 2, 3, 4)):
        for shift, at in itertools.product(range(0, 16, width if width != 3 else 4), positions(dtype, width)):
            yield dtype, width, shift, at


def wrong_codes(assembly):
    wrong = 0
    for dtype, width, shift, at in code_cases():
        (found,) = run(assembly(shift, width, dtype, at), both_halves(WORDS, NEIGHBOURS))
        for words, half in zip((WORDS, NEIGHBOURS), halves(found), strict=True):
            wanted = unpack.bias(dtype, at) + (words >> shift & (2**width - 1))
            with np.errstate(invalid="ignore"):  # what wrong assembly makes may be no number
                wrong += int((floats(half, dtype) != wanted).sum())
    return wrong


def test_assembly_of_codes():
    """All words, shifts and places, next to any other word."""
    assert wrong_codes(unpack._codes_asm) == 0


def test_assembly_of_codes_is_found_wrong():
    assert wrong_codes(lambda *arguments: re.sub("0xEA", "0xEB", unpack._codes_asm(*arguments)))
    assert wrong_codes(lambda shift, *rest: unpack._codes_asm((shift + 1) % 16, *rest))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_assembly_of_joined_codes(dtype):
    high = NEIGHBOURS[::-1].copy()
    for width, shift in itertools.product((1, 2, 3), (0, 4, 8, 12)):
        inputs = both_halves(WORDS, NEIGHBOURS), both_halves(high, WORDS)
        for at in positions(dtype, 4 + width):
            (found,) = run(unpack._joined_asm(shift, width, dtype, at), *inputs)
            for lower, upper, half in zip((WORDS, NEIGHBOURS), (high, WORDS), halves(found), strict=True):
                codes = (lower >> shift & 15) + 16 * (upper >> shift & (2**width - 1))
                assert (floats(half, dtype) == unpack.bias(dtype, at) + codes).all(), (width, shift, at)


def test_assembly_of_nibbles():
    one = NEIGHBOURS[::-1].copy()
    for odd, place in itertools.product((0, 1), range(4)):
        (found,) = run(unpack._nibbles_asm(odd), both_halves(WORDS, NEIGHBOURS), both_halves(one, WORDS))
        for two, ones, half in zip((WORDS, NEIGHBOURS), (one, WORDS), halves(found), strict=True):
            bit = 4 * place + 2 * odd
            assert ((half >> 4 * place & 7) == (two >> bit & 3) + 4 * (ones >> bit & 1)).all(), (odd, place)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_assembly_of_bytes(dtype):
    """Two bytes in the lower half of a register become two words, whatever is in the upper half."""
    (found,) = run(unpack._bytes_asm(dtype), both_halves(WORDS, NEIGHBOURS))
    for byte, half in zip((WORDS & 0xFF, WORDS >> 8), halves(found), strict=True):
        assert (floats(half, dtype) == unpack.byte_bias(dtype) + byte).all()


def test_bytes_without_a_register_for_one_are_refused():
    """As ptxas does."""
    assembly = unpack._bytes_asm(tl.bfloat16).replace("number, one", "number, 0x3F803F80")
    with pytest.raises(ValueError, match="registers only"):
        run(assembly, both_halves(WORDS, NEIGHBOURS))


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_fit_the_mantissa_and_bias_stays_small(bits, dtype):
    for plane in range(unpack.planes(bits)):
        at = unpack.place(plane, bits, dtype)
        assert 0 <= at <= unpack._mantissa(dtype) - bits
        assert unpack.plane_bias(plane, bits, dtype) <= 128


# In the interpreter


@triton.jit
def unpacked(words, y, BITS: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr):
    """Codes [ROWS, 128], less their bias and 1."""
    rows = tl.arange(0, ROWS)[:, None]
    WIDTH: tl.constexpr = 128 // unpack.planes(BITS)
    place = rows * 128 + tl.arange(0, WIDTH)[None, :]
    first = words + rows * (8 * BITS)
    if BITS == 8:
        values = first.to(tl.pointer_type(tl.uint8)) + tl.arange(0, WIDTH)[None, :]
    else:
        low, high = unpack.load_block(first, unpack.eighths(BITS), BITS)
    for plane in tl.static_range(unpack.planes(BITS)):
        if BITS == 8:
            codes = unpack.byte_codes(tl.load(values + plane * WIDTH), DTYPE)
            codes += -1 - unpack.byte_bias(DTYPE)
        else:
            codes = unpack.plane_codes(low, high, plane, BITS, DTYPE)
            codes += -1 - unpack.plane_bias(plane, BITS, DTYPE)
        tl.store(y + place + plane * WIDTH, codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_in_the_interpreter(bits, dtype):
    codes = torch.randint(0, 2**bits, (16, 128), dtype=torch.uint8)
    y = torch.empty(16, 128)
    unpacked[(1,)](pack(codes, bits), y, BITS=bits, DTYPE=dtype, ROWS=16)
    assert torch.equal(y, codes.float() - 1)
    unpacked[(1,)](pack(codes.roll(1), bits), y, BITS=bits, DTYPE=dtype, ROWS=16)
    assert not torch.equal(y, codes.float() - 1)


@triton.jit
def twin(words, y, SHIFT: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr, AT: tl.constexpr):
    places = tl.arange(0, 65536)
    tl.store(y + places, unpack.codes(tl.load(words + places), SHIFT, WIDTH, DTYPE, AT))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_twin_does_what_the_assembly_does(dtype):
    words, y = torch.from_numpy(WORDS.astype(np.uint16).view(np.int16)), torch.empty(2**16)
    for width, shift, at in ((2, 14, 3), (3, 4, 0), (4, 12, 2), (4, 0, 0)):
        twin[(1,)](words, y, SHIFT=shift, WIDTH=width, DTYPE=dtype, AT=at)
        (found,) = run(unpack._codes_asm(shift, width, dtype, at), both_halves(WORDS, NEIGHBOURS))
        assert (floats(found & 0xFFFF, dtype) == y.double().numpy()).all()
