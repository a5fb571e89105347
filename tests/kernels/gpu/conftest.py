"""The kernels for GPUs run in Triton's interpreter here, on CPU tensors. It is chosen before anything is imported:

TRITON_INTERPRET=1 pytest tests/kernels/gpu
"""

import os

import pytest


@pytest.fixture(autouse=True)
def interpreted():
    pytest.importorskip("triton", reason="needs Triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs in a process of its own, with TRITON_INTERPRET=1: `make test-gpu`")
