"""Lays the kernels in Triton out as the Hub's `kernels` package wants them, to load them from a folder.

    python kernels/stage_local.py build      writes build/torch-cpu, build/torch-cuda

    from kernels import get_local_kernel
    kernels = get_local_kernel(Path("build"))

kernel-builder makes the same from build.toml for publishing, but needs Nix. There is one variant for each backend of
build.toml, with the same files, since Triton compiles where they run. The library of C++ kernels is not among them: it
is made for one platform, and these variants are for all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
CONFIGURATION = HERE / "build.toml"
BUILT_HERE = {"build.json"}  # what build.py writes beside the sources

OPS = '''"""Names of operators of this build, which no other build has."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The operator's name with the namespace of this build."""
    return f"{id}::{{op_name}}"
'''


def stage(output: Path, configuration: Path = CONFIGURATION) -> list[Path]:
    """Write a folder for each backend into `output`, and return them. One that is there is replaced.

    Raises:
        OSError: a file cannot be read or written.
        KeyError: build.toml lacks a field.
    """
    settings = tomllib.loads(configuration.read_text(encoding="utf-8"))
    general = settings["general"]
    name = general["name"].replace("-", "_")
    files = sources(configuration.parent / "torch-ext" / name, settings["torch-noarch"]["pyext"])
    digest = hashlib.sha256(b"\0".join(part for file in files.items() for part in (file[0].encode(), file[1])))
    return [
        _write(output / f"torch-{backend}", files, general, backend, f"_{name}_{backend}_{digest.hexdigest()[:7]}")
        for backend in general["backends"]
    ]


def sources(package: Path, extensions: Sequence[str]) -> dict[str, bytes]:
    """Content of a package's files with these extensions, by path."""
    found = {}
    for file in sorted(package.rglob("*")):
        inside = file.relative_to(package)
        if file.suffix[1:] in extensions and inside.as_posix() not in BUILT_HERE and "__pycache__" not in inside.parts:
            found[inside.as_posix()] = file.read_bytes()
    return found


def _write(folder: Path, files: dict[str, bytes], general: dict[str, Any], backend: str, kernel_id: str) -> Path:
    """One variant, whole or not at all."""
    metadata = {
        "name": general["name"],
        "id": kernel_id,  # the name of the module in Python: two builds can be loaded at once
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
    }
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for path, content in files.items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).write_bytes(content)
    (partial / "_ops.py").write_text(OPS.format(id=kernel_id), encoding="utf-8")
    (partial / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Lay out the Triton kernels for `kernels.get_local_kernel`.")
    parser.add_argument("output", type=Path, help="folder for the variants")
    for folder in stage(parser.parse_args(arguments).output.resolve()):
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
