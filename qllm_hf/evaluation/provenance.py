"""What a score must say of where it was made: model files, versions, machine."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from .. import __version__

LIBRARIES: Final = ("torch", "transformers", "lm_eval", "datasets", "tokenizers")


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
