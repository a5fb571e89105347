"""Configs that were measured: which tiles a kernel uses on the device at hand, for the shape at hand.

A file for each operation and device, `configs/linear,device_name=NVIDIA_H200.json`, as tuning.py writes it:

    {"operation": "linear", "device_name": "NVIDIA H200", "triton": "3.6.0", "measured": [
        {"shape": {"outputs": 4096, "inputs": 4096, "bits": 4, "group_size": 128}, "size": 1,
         "config": {"BLOCK_N": 64, "BLOCK_M": 16, "SPLITS": 8, "num_warps": 4, "num_stages": 4},
         "us": ..., "default_us": ...}, ...]}

The shape is what is known when a model is loaded; the size (tokens, or the length of a history) is what changes, and
the nearest one that was measured counts. A device without a file, or a shape that is not in it, has none: then the
default of the operation is used. A file that cannot be read is ignored with a warning: it makes nothing wrong, only
slower.

Files are looked for in the folder that QLLM_HF_GPU_CONFIGS names, then beside this module.
"""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

FOLDER = Path(__file__).resolve().parent / "configs"
SETTING = "QLLM_HF_GPU_CONFIGS"
LARGEST = 1 << 16

Config = TypeVar("Config", bound=tuple[int, ...])
Shape = tuple[tuple[str, int], ...]


class ConfigError(ValueError):
    """A file of configs that is not one, or is for something else."""


class Measured(NamedTuple):
    """The best config that was found for a shape and a size, its microseconds, and those of the default."""

    shape: dict[str, int]
    size: int
    config: dict[str, int]
    us: float
    default_us: float


def find(
    operation: str, kind: type[Config], shape: Mapping[str, int], size: int, device: torch.device
) -> Config | None:
    """The config of an operation that was measured for a shape and the nearest size, or None.

    `kind` is a NamedTuple of integers. Only a config with its fields is used.
    """
    if device.type != "cuda":
        return None
    found: Config | None = _find(operation, kind, tuple(sorted(shape.items())), size, device_name(device))
    return found


def device_name(device: torch.device) -> str:
    """What the driver calls a device."""
    return _device_name(torch.cuda.current_device() if device.index is None else device.index)


def file_name(operation: str, device: str) -> str:
    """Of the file for an operation and a device."""
    return f"{operation},device_name={device.replace(' ', '_')}.json"


def nearest(found: Iterable[Measured], shape: Mapping[str, int], size: int) -> Measured | None:
    """Of those for this shape, the one whose size has the smallest ratio to `size`; of two, the smaller size."""
    same = sorted((each for each in found if each.shape == dict(shape)), key=lambda each: each.size)
    return min(same, key=lambda each: abs(math.log(max(size, 1) / each.size)), default=None)


def read(path: Path, operation: str, device: str) -> list[Measured]:
    """What a file says.

    Raises:
        ConfigError: it cannot be read, is not such a file, or is for another operation or device.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("measured"), list):
        raise ConfigError(f"{path}: no object with a list `measured`")
    for field, wanted in (("operation", operation), ("device_name", device)):
        if content.get(field) != wanted:
            raise ConfigError(f"{path}: {field} is {content.get(field)!r}, not {wanted!r}")
    return [_measured(entry, path) for entry in content["measured"]]


def write(folder: Path, operation: str, device: str, found: Iterable[Measured]) -> Path:
    """Add configs to the file of an operation and a device, which is whole at every moment; those it had stay.

    Raises:
        ConfigError: there is a file of that name that is not one.
    """
    path = folder / file_name(operation, device)
    entries = {_key(each): each for each in (read(path, operation, device) if path.exists() else [])}
    entries |= {_key(each): each for each in found}
    content = {"operation": operation, "device_name": device, "triton": _triton_version()}
    measured = [entries[key]._asdict() for key in sorted(entries)]
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({**content, "measured": measured}, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _find.cache_clear()
    _table.cache_clear()
    return path


def _key(each: Measured) -> tuple[Shape, int]:
    return tuple(sorted(each.shape.items())), each.size


def _measured(entry: Any, path: Path) -> Measured:
    """An entry of a file, checked.

    Raises:
        ConfigError: something is missing or has another type.
    """
    try:
        each = Measured(**entry)
        numbers = [*each.shape.values(), *each.config.values()]
        positive = [each.size, *each.config.values()]
    except (TypeError, AttributeError):
        raise ConfigError(f"{path}: not an entry of {', '.join(Measured._fields)}: {entry}") from None
    if not all(type(number) is int for number in [*numbers, each.size]):
        raise ConfigError(f"{path}: shape, size and config are not of integers: {entry}")
    if not all(number > 0 for number in positive) or max(each.config.values(), default=1) > LARGEST:
        raise ConfigError(f"{path}: a size or a config out of range: {entry}")
    return each


@functools.lru_cache(maxsize=4096)
def _find(operation: str, kind: Any, shape: Shape, size: int, device: str) -> Any:
    found = nearest(_table(operation, device), dict(shape), size)
    if found is None:
        return None
    if set(found.config) != set(kind._fields):
        warnings.warn(
            f"{file_name(operation, device)} has configs of {', '.join(found.config)}, and this version takes "
            f"{', '.join(kind._fields)}: tune again. Defaults are used.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return kind(**found.config)


@functools.cache
def _table(operation: str, device: str) -> tuple[Measured, ...]:
    """What the first file that is there says; nothing where there is none, or it cannot be read."""
    named = os.environ.get(SETTING)
    for folder in ([Path(named)] if named else []) + [FOLDER]:
        path = folder / file_name(operation, device)
        if path.exists():
            try:
                return tuple(read(path, operation, device))
            except ConfigError as error:
                warnings.warn(f"measured configs are ignored: {error}", RuntimeWarning, stacklevel=4)
                return ()
    return ()


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _triton_version() -> str:
    import triton

    return str(triton.__version__)
