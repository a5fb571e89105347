"""The kernels for GPUs run in Triton's interpreter here, on CPU tensors. It is chosen before anything is imported:

TRITON_INTERPRET=1 pytest tests/kernels/gpu
"""

import importlib.util
import os

import pytest

from qllm_kernels import gpu

# Files here import kernels at their top, which an old Triton cannot make. Without any they are skipped one by one.
collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("triton") and gpu._old_triton() else []


@pytest.fixture(autouse=True)
def interpreted():
    pytest.importorskip("triton", reason="needs Triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs in a process of its own, with TRITON_INTERPRET=1: `make test-gpu`")
