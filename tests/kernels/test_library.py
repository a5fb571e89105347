"""The loader: what it says of a library that is there, of one that is not, and of its levels and threads."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from qllm_kernels import cpu


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter: the library is opened once in each."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("QLLM_HF_")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env={**settings, **environment}, capture_output=True, text=True, timeout=300)


STATUS = "import qllm_hf\nfrom qllm_kernels import cpu\nstatus = cpu.status()\nprint(status.level, '|', status.reason)"


def test_status(library):
    status = cpu.status()
    assert status.reason is None
    assert status.path.name == "libqllm_cpu.so"
    assert status.level == library.level
    assert status.level in status.levels
    assert status.levels[-1] == "portable"
    assert set(status.levels) <= set(status.build["levels"])


def test_threads_are_those_of_torch(library):
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no OpenMP")
    assert re.fullmatch(r"those of torch \(lib\w*omp.*\)", library.threads)


def test_best_level_is_the_default_and_any_can_be_chosen(library):
    assert in_a_process(STATUS).stdout == f"{library.levels[0]} | None\n"
    for name in library.levels[-1:]:
        assert in_a_process(STATUS, QLLM_HF_CPU=name).stdout == f"{name} | None\n"


def test_unknown_level(library):
    allowed = ", ".join((*library.levels, "off"))
    message = f"QLLM_HF_CPU='avx1024' is no level of this build and processor: allowed are {allowed}"
    assert in_a_process(STATUS, QLLM_HF_CPU="avx1024").stdout == f"None | {message}\n"
    done = in_a_process(
        "import torch\nfrom qllm_hf.ops import Request, resolve\nfrom qllm_hf.scheme import Spec\n"
        "resolve(Request('cpu', torch.float32, Spec(4), None))",
        QLLM_HF_CPU="avx1024",
    )
    assert done.returncode != 0
    assert f"ConfigError: {message}" in done.stderr
    with pytest.raises(cpu.KernelError, match=re.escape(f"no level 'avx1024' here: allowed are {library.levels[0]}")):
        library.set_level("avx1024")


def test_off():
    assert in_a_process(STATUS, QLLM_HF_CPU="off").stdout == "None | turned off by QLLM_HF_CPU=off\n"


def test_import_loads_nothing():
    done = in_a_process(
        "import sys, qllm_hf\nfrom qllm_kernels import cpu\n"
        "assert 'torch' not in sys.modules\nassert not cpu._opened.cache_info().currsize"
    )
    assert done.returncode == 0, done.stderr


def test_reason_of_a_build_that_failed_is_given(tmp_path):
    with pytest.raises(cpu.KernelError, match=r"not built: kernels/build\.py never ran"):
        cpu.Library(tmp_path / "libqllm_cpu.so")
    (tmp_path / "build.json").write_text(json.dumps({"built": False, "reason": "no C++ compiler"}))
    with pytest.raises(cpu.KernelError, match=r"not built: no C\+\+ compiler"):
        cpu.Library(tmp_path / "libqllm_cpu.so")


def test_file_that_is_no_library(tmp_path):
    path = tmp_path / "libqllm_cpu.so"
    path.write_bytes(b"\x7fELF and then nothing")
    with pytest.raises(cpu.KernelError, match="cannot be loaded: "):
        cpu.Library(path)


def test_other_interface(library, monkeypatch):
    monkeypatch.setattr(cpu, "ABI", cpu.ABI + 1)
    with pytest.raises(
        cpu.KernelError, match=rf"has interface {cpu.ABI - 1} and this version needs {cpu.ABI}: install or"
    ):
        cpu.Library(library.path)


@pytest.mark.parametrize("change", [{"bits": 1}, {"bits": 9}, {"group_size": 33}, {"scale_type": 3}, {"words": 0}])
def test_calls_that_cannot_be_are_refused(library, change):
    """The checks of the library itself: what comes from torch was checked before."""
    words, scale, x, y = (torch.zeros(64, dtype=torch.int16) for _ in range(4))
    matrix = {"words": words.data_ptr(), "scale": scale.data_ptr(), "zero_point": 0, "shape": (1, 64)}
    matrix |= {"strides": (16, 2, 2), "group_size": 32, "bits": 4, "scale_type": cpu.FLOAT16}
    head = cpu.vectors_and_results(1)

    def call(**changed) -> int:
        data = head(x.data_ptr(), 1, 64, cpu.FLOAT16, 0, 0, 0, 1, 1, y.data_ptr())
        return library.linear_call(data + cpu.matrix(**{**matrix, **changed}) + cpu.addresses([0]))

    cpu.check(call())
    with pytest.raises(cpu.KernelError, match="the kernel failed: an argument that no kernel takes"):
        cpu.check(call(**change))


def test_read_bandwidth(library):
    from qllm_hf.ops.cpu import read_bandwidth

    assert 1e8 < read_bandwidth(2**24, repeats=2) < 1e13
