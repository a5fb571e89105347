"""The Hadamard rotation: orthonormal, its own inverse, and what it is for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.rotation import rotate, rotation_size
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

DTYPES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@given(st.integers(1, 600))
def test_parts_are_powers_of_two(length):
    size = rotation_size(length)
    assert size & (size - 1) == 0
    assert length % size == 0
    assert length // size % 2 == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 64, 80, 96, 128, 256])
def test_turns_there_and_back(dtype, length):
    x = torch.randn(3, 2, 5, length).to(dtype)
    turned = rotate(x)
    assert (turned.dtype, turned.shape) == (x.dtype, x.shape)
    tolerance = DTYPES[dtype] * x.double().norm()
    assert (rotate(turned).double() - x.double()).norm() < tolerance
    assert abs(turned.double().norm() - x.double().norm()) < tolerance
    assert length % 2 or not torch.allclose(turned, x, atol=0.1)


@given(st.sampled_from([8, 40, 128]), st.integers(0, 2**32))
def test_products_stay(length, seed):
    q, k = torch.randn(2, 6, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(rotate(q) @ rotate(k).T, q @ k.T, rtol=1e-12, atol=1e-12)


def test_is_the_textbook_matrix():
    expected = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    assert rotate(torch.eye(4)).equal(expected)


def test_takes_outliers_out_of_the_scale():
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 17] *= 40
    spec = Spec(4, 128)

    def error(found):
        return ((found - x).norm() / x.norm()).item()

    assert error(rotate(fake_quantize(rotate(x), spec))) < 0.6 * error(fake_quantize(x, spec))


def test_follows_a_graph():
    x = torch.randn(2, 96)
    torch.testing.assert_close(torch.compile(rotate, fullgraph=True, backend="aot_eager")(x), rotate(x))
    assert rotate(x.to("meta")).shape == x.shape
