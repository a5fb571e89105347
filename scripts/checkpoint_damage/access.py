"""A packed checkpoint as bytes: its files, their headers, and where a tensor lies."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[random.Random, Path], None]
INDEX = "model.safetensors.index.json"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def join(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def names(header: dict[str, Any], ending: str = "") -> list[str]:
    return sorted(name for name in header if name.endswith(ending) and name != "__metadata__")


def holding(rng: random.Random, folder: Path, ending: str) -> tuple[Path, dict[str, Any], bytes, str]:
    """A file that holds a tensor with such a name, its header and data, and the name."""
    found = [path for path in shards(folder) if names(split(path)[0], ending)]
    path = rng.choice(found)
    header, data = split(path)
    return path, header, data, rng.choice(names(header, ending))
