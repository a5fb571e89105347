"""What the tests of the kernels share: the builder, the library, and each of its levels in turn."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)
from qllm_kernels import cpu

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """kernels/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("qllm_kernels_build", REPO / "kernels" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library(builder, cannot_run) -> cpu.Library:
    """The library that is installed, made from the sources at hand."""
    status = cpu.status()
    if status.reason and next(builder._commands(os.environ), None) is None:
        pytest.skip("no C++ compiler")
    if status.reason:
        cannot_run(f"CPU kernels: {status.reason}. Run: python kernels/build.py")
    if status.build.get("sources") != builder.fingerprint():
        cannot_run("the CPU kernels were built from other sources. Run: python kernels/build.py")
    return cpu.library()


# "amx_twin" is "amx" with its tile registers written out in C++, for processors that have none.
@pytest.fixture(params=["amx", "amx_twin", "avx512_vnni", "avx2_vnni", "avx2", "portable"])
def level(request, library) -> Iterator[str]:
    """Each level that this processor runs."""
    before = library.level
    try:
        library.set_level(request.param)
    except cpu.KernelError as error:
        pytest.skip(str(error))
    yield request.param
    library.set_level(before)
