"""The tile registers of AMX: amx.cpp on instructions written out in C++, and the check that lets a processor's be used.

What the kernels do with them is in test_linear.py, at the levels "amx" and "amx_twin".
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from qllm_hf.ops import cpu as implementation
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec
from qllm_kernels import cpu

HERE, SOURCES = Path(__file__).resolve().parent / "tiles", Path(__file__).resolve().parents[2] / "kernels" / "cpu"


@pytest.fixture(scope="module")
def verdicts(builder, tmp_path_factory) -> dict[str, bool]:
    """What tiles/check.cpp says."""
    compiler = next(builder._commands(os.environ), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("tiles") / "check"
    # the folder of the test comes first, and its immintrin.h is the one that amx.cpp finds
    flags = ("-std=c++17", "-O1", f"-I{HERE}", f"-I{SOURCES}")
    subprocess.run([*compiler, *flags, str(HERE / "check.cpp"), "-o", str(program)], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: verdict == "1" for name, verdict in map(str.split, said.splitlines())}


def test_amx_multiplies_as_the_manual_says(verdicts):
    assert verdicts["amx"]


@pytest.mark.parametrize("wrong", ["wrong_sign", "last_row_missing", "second_half_missing", "only_two_streams"])
def test_registers_that_compute_something_else_are_not_used(verdicts, wrong):
    assert not verdicts[wrong]


def test_twin_is_there_for_tests_only(library):
    if "avx512_vnni" not in library.levels:
        pytest.skip("its vectors are those of avx512_vnni")
    assert "amx_twin" not in library.levels
    before = library.level
    library.set_level("amx_twin")
    assert library.level == "amx_twin"
    library.set_level(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_bits_with_and_without_tile_registers(library, dtype):
    """The sums of a unit are integers, so it does not matter who adds them up."""
    x, weight = torch.randn(40, 700).to(dtype), torch.randn(130, 700).to(dtype)
    before, found = library.level, []
    for name in ("amx_twin", "avx512_vnni"):
        try:
            library.set_level(name)
        except cpu.KernelError as error:
            pytest.skip(str(error))
        found.append(
            [
                implementation.linear(x, PackedTensor.encode(weight, Spec(bits, group)), None, activation)
                for bits, group in ((4, 128), (8, 64), (3, 32))
                for activation in (None, Spec(8, -1))
            ]
        )
    library.set_level(before)
    for mine, twin in zip(*found, strict=True):
        assert mine.equal(twin)
