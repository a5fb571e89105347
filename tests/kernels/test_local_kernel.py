"""The Triton kernels, laid out for the Hub's `kernels` package, load without a network, a GPU or Triton."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BACKENDS = ("cpu", "cuda")


@pytest.fixture(scope="module")
def stage_local():
    """kernels/stage_local.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("qllm_stage_local", REPO / "kernels" / "stage_local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build(stage_local, tmp_path_factory):
    """A folder with all variants."""
    folder = tmp_path_factory.mktemp("kernel") / "build"
    stage_local.stage(folder)
    return folder


def need_the_package():
    """Skip without it; this repository's own folder of that name may be found in its place."""
    if not hasattr(pytest.importorskip("kernels", reason="needs the Hub's kernels package"), "get_local_kernel"):
        pytest.skip("needs the Hub's kernels package")


def run(code, **settings):
    """What a Python process prints that sees neither these sources nor the Hub."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **settings}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_every_backend_has_the_same_files(build):
    variants = [build / f"torch-{backend}" for backend in BACKENDS]
    assert sorted(path.name for path in build.iterdir()) == sorted(path.name for path in variants)
    names = [{file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} for path in variants]
    assert names[0] == names[1]
    assert {"__init__.py", "_ops.py", "metadata.json", "gpu/__init__.py", "gpu/weights.py"} <= names[0]
    assert not [name for name in names[0] if name.endswith((".so", ".pyc")) or name == "build.json"]


def test_metadata_says_what_the_package_needs(build):
    found = {backend: json.loads((build / f"torch-{backend}" / "metadata.json").read_text()) for backend in BACKENDS}
    for backend, metadata in found.items():
        assert metadata["backend"] == {"type": backend}
        assert metadata["name"] == "qllm-kernels"
        assert metadata["id"].isidentifier()
        assert metadata["license"] == "Apache-2.0"
    assert found["cpu"]["id"] != found["cuda"]["id"]


def test_other_sources_get_another_name(stage_local, build, tmp_path):
    project = tmp_path / "project"
    package = project / "torch-ext" / "qllm_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (project / "build.toml").write_text((REPO / "kernels" / "build.toml").read_text())
    names = set()
    for content in ("a = 1\n", "a = 2\n", "a = 2\n"):
        (package / "a.py").write_text(content)
        stage_local.stage(tmp_path / "build", project / "build.toml")
        names.add(json.loads((tmp_path / "build" / "torch-cpu" / "metadata.json").read_text())["id"])
    assert len(names) == 2


def test_file_that_is_gone_is_gone_from_the_build(stage_local, tmp_path):
    stage_local.stage(tmp_path)
    (tmp_path / "torch-cpu" / "left_over.py").write_text("")
    stage_local.stage(tmp_path)
    assert not (tmp_path / "torch-cpu" / "left_over.py").exists()


def test_imports_are_relative():
    package = REPO / "kernels" / "torch-ext" / "qllm_kernels"
    for file in package.rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and len(words) > 1:
                assert words[1].partition(".")[0] not in ("qllm_kernels", "qllm_hf"), f"{file.name}: {line}"


LOAD = """
import importlib, sys
from pathlib import Path
from kernels import get_local_kernel

kernel = get_local_kernel(Path({folder!r}){backend})
gpu = importlib.import_module(kernel.__name__ + ".gpu")
print(kernel.__name__, "qllm_kernels" in sys.modules, gpu.missing())
"""


@pytest.mark.parametrize("where", ["", "build", "build/torch-cpu"])
def test_loads_from_repository_build_and_variant(build, where):
    need_the_package()
    folder = build.parent / where
    name, sources, *why = run(LOAD.format(folder=str(folder), backend="")).split(" ", 2)
    assert name.startswith("_qllm_kernels_cpu_")
    assert sources == "False"
    assert why[0] in ("torch finds no GPU", "Triton is not installed (it comes with torch for CUDA and ROCm)", "None")


INTERPRET = """
import importlib
from pathlib import Path
import torch
from kernels import get_local_kernel

kernel = get_local_kernel(Path({folder!r}))
encode = importlib.import_module(kernel.__name__ + ".gpu.decode")
words = torch.tensor([[0x3210]], dtype=torch.int16).expand(1, 32).contiguous()  # planes 0, 1, 2, 3 of 128 codes
scale = torch.full((1, 1), 0.5)
print(encode.decode(words, scale, None, bits=4, group_size=128, length=128, dtype=torch.float32)[0, ::32].tolist())
"""


def test_loaded_kernel_computes(build):
    need_the_package()
    pytest.importorskip("triton", reason="needs Triton")
    code = 'import os; os.environ["TRITON_INTERPRET"] = "1"\n' + INTERPRET.format(folder=str(build.parent))
    assert run(code) == "[-4.0, -3.5, -3.0, -2.5]"


HIDDEN = """
import importlib, sys

sys.modules["triton"] = None
sys.path.insert(0, {folder!r})
package = importlib.import_module("torch-cpu")
for name in ("cpu", "encode", "attention", "gpu"):
    importlib.import_module("torch-cpu." + name)
print(sys.modules["torch-cpu.gpu"].missing())
"""


def test_imports_without_triton(build):
    assert run(HIDDEN.format(folder=str(build))).startswith("Triton is not installed")
