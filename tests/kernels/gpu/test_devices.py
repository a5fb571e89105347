"""Kernels are launched on the device of their tensors, which need not be the current one."""

import contextlib

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from qllm_hf.packed import encode_reference
from qllm_hf.scheme import Spec
from qllm_kernels.gpu import attention, decode, encode, integers, tokens

X = torch.randn(2, 256)
WEIGHT = encode_reference(X, Spec(8))[:3]
ROWS = torch.empty(1, 2, 1, 130, dtype=torch.int16)  # of 256 codes of 8 bits, and two scales
FORM = {"bits": 8, "group_size": 128}
ROW_FORM = FORM | {"symmetric": True}
SPLIT = integers.Config(BLOCK_N=16, BLOCK_M=16, SPLITS=2, num_warps=1, num_stages=1)
VECTORS = X.bfloat16().view(1, 2, 1, 256)


def multiply():
    found = tokens.quantize_tokens(X, bits=8, symmetric=True, sums_over=128)
    integers.multiply(found, *WEIGHT, **FORM, config=SPLIT)


LAUNCHES = {
    "decode": (lambda: decode.decode(*WEIGHT, **FORM, length=256, dtype=torch.float32), ["_decode"]),
    "decode_rows": (
        lambda: decode.decode_rows(ROWS, **ROW_FORM, length=256, dtype=torch.bfloat16), ["_decode_rows"],
    ),
    "quantize and multiply": (multiply, ["quantize", "product", "add_splits"]),
    "encode": (lambda: encode.encode(X, **ROW_FORM), ["_encode"]),
    "encode_rows": (lambda: encode.encode_rows_into(VECTORS, ROWS, **ROW_FORM), ["_append"]),
    "attend": (
        lambda: attention.attend(
            VECTORS, ROWS, ROWS, key_bits=8, value_bits=8, group_size=128, symmetric=True, scale=1.0
        ),
        ["attend_stretch", "merge_stretches"],
    ),
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """Names of kernels that were launched, and the device that was chosen for them, or None."""
    chosen, found = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        chosen.append(tensor.device)
        yield
        chosen.pop()

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **constants: found.append((self.name, chosen[-1] if chosen else None))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for _, names in LAUNCHES.values():
        for name in names:
            for module in (decode, integers, tokens, encode, attention):
                if name in vars(module):
                    monkeypatch.setattr(module, name, Kernel(name))
    return found


@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_are_launched_on_the_device_of_their_tensors(launched, name):
    call, kernels = LAUNCHES[name]
    call()
    assert launched == [(kernel, torch.device("cpu")) for kernel in kernels]


def test_launch_without_a_device_is_noticed(launched):
    decode._decode[(1,)]()
    assert launched == [("_decode", None)]
