"""What a score must say of where it was made: model files, versions, machine."""

from __future__ import annotations

import os
import platform
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from .. import __version__
from ..builtin import BUILTIN

LIBRARIES: Final = ("torch", "transformers", "lm_eval", "datasets", "tokenizers")
_EDGE: Final = 1 << 20


def versions() -> dict[str, str]:
    """Versions of everything that can move a score."""
    found = {"qllm_hf": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, str]:
    """The processor that does the work, and the threads it uses."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "threads": str(torch.get_num_threads())}
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        models = [line.partition(":")[2].strip() for line in described.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {"device": name, "threads": str(torch.get_num_threads())}


def revision_of(name_or_path: str, model: Any) -> str:
    """Which files a model came from: its commit on the Hub, or a digest of the files in its folder.

    Of a file of weights, the size and the first and last megabyte are taken: the header with all names and shapes, and
    enough numbers to tell two trainings apart.
    """
    folder = BUILTIN.get(name_or_path, Path(name_or_path).expanduser())
    if not name_or_path or not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None) or "")
    found = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".json", ".safetensors", ".model", ".jinja", ".txt"} or not path.is_file():
            continue
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(_EDGE))
            if size > 2 * _EDGE:
                file.seek(-_EDGE, os.SEEK_END)
            found.update(file.read(_EDGE))
    return f"files:{found.hexdigest()[:12]}"
