"""The address and the undefined-behaviour sanitizer find nothing in the kernels, and would find something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("sanitized.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sanitized(builder, library, pytestconfig) -> tuple[Path, str]:
    """Folder of the library with sanitizers, best level and the portable one, and the runtime to load before Python.

    What was compiled is kept in pytest's cache.
    """
    if os.environ.get("QLLM_TEST_SANITIZERS") != "1":
        pytest.skip("takes minutes to compile: set QLLM_TEST_SANITIZERS=1")
    command = next(builder._commands(os.environ), None)
    if command is None:
        pytest.skip("no C++ compiler")
    asked = subprocess.run([*command, "-print-file-name=libasan.so"], capture_output=True, text=True)
    runtime = asked.stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("this compiler has no runtime of the address sanitizer")
    folder = pytestconfig.cache.mkdir("qllm_kernels_sanitized")
    best = library.levels[: 2 if library.levels[0] == "amx" else 1]  # its vectors are those of the next one
    built = builder.build(folder / "out", levels=best, sanitize="address,undefined", objects=folder)
    assert built.reason is None
    return folder / "out", runtime


def run(sanitized: tuple[Path, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    folder, runtime = sanitized
    # Python and torch give back at the end what they still hold, so leaks would be theirs
    options = "detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=0"
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_sanitizers_find_nothing(sanitized):
    done = run(sanitized)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "runtime error" not in done.stderr
    assert "portable: 525 products, 245 attentions, 343 weights unpacked" in done.stdout


def test_one_more_token_would_be_found(sanitized):
    done = run(sanitized, "1")
    assert done.returncode != 0
    # or that the heap's own records were overwritten, where the whole token lies in another tensor
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr or "AddressSanitizer: CHECK failed" in done.stderr
