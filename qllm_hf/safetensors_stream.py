"""Safetensors files written one tensor at a time, for checkpoints that are larger than memory.

The safetensors library writes a file from tensors that are all in memory. Here the header is made first, from names and
shapes alone, and every tensor is made, written and forgotten in turn.

    | 8 bytes: n, little endian | n bytes: JSON {name: {dtype, shape, data_offsets}} | the tensors, one after another |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint import FORMAT_KEY, INDEX, SINGLE
from .checksums import as_metadata, checksum
from .errors import CheckpointError

SHARD_BYTES = 5 * 10**9
"""What a file holds at most, unless a single tensor is larger: the size that hubs and engines expect."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in _NAMES.items()}
"""What safetensors calls a dtype -> the dtype."""
_ALIGNED = 8  # readers map the tensors from the file, so they begin at a multiple of this


class Item(NamedTuple):
    """A tensor to be written: everything but its values is known before `make` computes it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_items(
    folder: Path,
    items: Sequence[Item],
    *,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """The safetensors files in `folder` that hold the items, with an index if there are several.

    Args:
        metadata: what the header of each file says beside {"format": "pt"}.
        progress: called with the bytes of each tensor that was written.

    Raises:
        CheckpointError: two items have one name, or an item turns out to be another tensor than it said.
    """
    names = [item.name for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"two tensors would be written under the name {twice!r}.")
    shards = list(_shards(items, shard_bytes))
    files = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write(folder / file, shard, metadata or {}, progress)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(item.nbytes for item in items)},
            "weight_map": {item.name: file for file, shard in zip(files, shards, strict=True) for item in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / file for file in files]


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _shards(items: Sequence[Item], shard_bytes: int) -> Iterator[list[Item]]:
    shard: list[Item] = []
    size = 0
    for item in items:
        if shard and size + item.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(item)
        size += item.nbytes
    yield shard


def _write(
    path: Path, shard: Sequence[Item], metadata: Mapping[str, str], progress: Callable[[int], None] | None
) -> None:
    # wide elements first, so that every tensor begins at a multiple of its element size
    shard = sorted(shard, key=lambda item: -item.dtype.itemsize)
    # packed checkpoints have checksums, which are known when all is written: they take their place in the header now
    checksums = {item.name: "00000000" for item in shard} if FORMAT_KEY in metadata else {}
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata, **as_metadata(checksums)}}
    end = 0
    for item in shard:
        header[item.name] = {
            "dtype": _NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [end, end + item.nbytes],
        }
        end += item.nbytes
    with path.open("wb") as file:
        file.write(_header_bytes(header))
        for item in shard:
            tensor = item.make()
            if tensor.dtype != item.dtype or tuple(tensor.shape) != item.shape:
                raise CheckpointError(
                    f"{item.name} was to be {item.dtype} {list(item.shape)} and is {tensor.dtype} {list(tensor.shape)}."
                )
            file.write(raw := _raw(tensor))
            if checksums:
                checksums[item.name] = checksum(_NAMES[item.dtype], item.shape, [raw])
            if progress is not None:
                progress(item.nbytes)
        if checksums:
            header["__metadata__"] = {"format": "pt", **metadata, **as_metadata(checksums)}
            file.seek(0)
            file.write(_header_bytes(header))


def _header_bytes(header: dict[str, object]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def state_checksums(state: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: checksum} of the tensors of a state dict, as they will be stored.

    None at all if some are on no device, or cut over processes: this process does not hold their values.
    """
    if any(tensor.is_meta or hasattr(tensor, "to_local") or tensor.dtype not in _NAMES for tensor in state.values()):
        return {}
    return {name: checksum(_NAMES[tensor.dtype], tensor.shape, [_raw(tensor)]) for name, tensor in state.items()}


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
