"""The assembly that makes int8 of packed words, run on random words: what it leaves in registers, byte by byte."""

import numpy as np
import pytest

pytest.importorskip("triton")

from ptx import run

from qllm_kernels.gpu import unpack_integers as unpack

COUNT = 5000


def random_words(seed=0, bits=16):
    """Words [COUNT, 4], as four elements lie in a thread."""
    return np.random.default_rng(seed).integers(0, 2**bits, (COUNT, 4), dtype=np.uint32)


def registers(words):
    """Words [COUNT, 4] in two registers."""
    return words[:, 0] | (words[:, 1] << 16), words[:, 2] | (words[:, 3] << 16)


def register(data):
    """Bytes [COUNT, 4] in a register."""
    return (data << (8 * np.arange(4, dtype=np.uint32))).sum(1, dtype=np.uint32)


def wrong_wide(assembly):
    words = random_words()
    found = run(assembly, *registers(words), outputs=4)
    return [plane for plane in range(4) if (found[plane] != register(words >> (4 * plane) & 15)).any()]


def wrong_narrow(assembly, bits, at):
    two, one = random_words(1), random_words(2)
    found = run(assembly, *registers(two), *registers(one), outputs=8)
    wrong = []
    for plane in range(8):
        low, high = two >> (2 * plane) & min(3, 2**bits - 1), one >> (2 * plane) & 1
        codes = low | (high << 2) if bits == 3 else low
        if (found[plane] != register(codes << at)).any():
            wrong.append(plane)
    return wrong


def test_fields_of_4_bits():
    assert not wrong_wide(unpack._wide_asm())
    assert wrong_wide(unpack._wide_asm().replace("0x6420", "0x7420"))


@pytest.mark.parametrize("at", (0, 4))
@pytest.mark.parametrize("bits", (1, 2, 3))
def test_fields_of_fewer_bits(bits, at):
    assert not wrong_narrow(unpack._narrow_asm(bits, at), bits, at)
    assert wrong_narrow(unpack._narrow_asm(bits, at).replace("0x7531", "0x6420"), bits, at) == [4, 5, 6, 7]
    assert wrong_narrow(unpack._narrow_asm(bits, 4 - at), bits, at)


def test_halves_of_a_field_of_1_bit():
    """Left and right columns are never both there. The right ones shift across words, at bits that nobody reads."""
    left, right = registers(random_words())[0], registers(random_words(1))[0]
    nothing = np.zeros_like(left)
    even = 0x55555555
    assert (run(unpack._BIT_FIELD.value, left, nothing)[0] == left).all()
    found = run(unpack._BIT_FIELD.value, nothing, right)[0]
    assert (found & even == right >> 1 & even).all()
    halves = right & 0xFFFF, right >> 16
    assert (found & 0x5555 == halves[0] >> 1 & 0x5555).all() and (found >> 16 & 0x5555 == halves[1] >> 1 & 0x5555).all()


def test_zero_points_and_signs():
    """All codes and zero points of 7 bits, in bytes beside others at their ends."""
    codes, zeros = (each.reshape(-1).astype(np.uint32) for each in np.mgrid[0:128, 0:128])
    columns = np.stack([codes, 0 * codes, 0 * codes + 127, codes[::-1]], 1)
    zero_points = np.stack([zeros, 0 * zeros + 127, 0 * zeros, zeros[::-1]], 1)
    expected = register((columns.astype(np.int64) - zero_points).astype(np.uint8).astype(np.uint32))
    complement = register(128 - zero_points)
    assert (run(unpack._SIGNED.value, register(columns), complement)[0] == expected).all()
    parts = register(columns & 15), register(columns & 0x70)
    assert (run(unpack._SIGNED_SUM.value, *parts, complement)[0] == expected).all()
    assert (run(unpack._SIGNED.value, register(columns), register(127 - zero_points))[0] != expected).all()


def test_bytes():
    data = random_words(bits=8)
    expected = register((data.astype(np.int64) - 128).astype(np.uint8).astype(np.uint32))
    assert (run(unpack._BYTES.value, register(data))[0] == expected).all()
