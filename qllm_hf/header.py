"""The header of a safetensors file, taken only where it describes every byte behind it exactly once.

    | 8 bytes: n, little endian | n bytes: JSON {tensor name: {dtype, shape, data_offsets}} | the tensors |

The header says where the last tensor ends. A file that was cut while it was copied is shorter than that,
so comparing the two is enough never to take half a file for a whole one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .strict_json import LARGEST_JSON, parse_object

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""What safetensors calls a dtype -> bits of an element."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a header describes it: dtype in safetensors' words (F32, BF16, I16), shape, size in bytes.

    `start` is where its bytes begin in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int = 0


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """{tensor name: what it is} and the metadata of one safetensors file.

    Raises:
        CheckpointError: the file is shorter or longer than its header says, or the header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_JSON):
            raise CheckpointError(
                f"{path} is cut short or no safetensors file: {size} bytes do not hold its header. "
                "Copy it again, or delete the folder and make it again."
            )
        raw = file.read(length)
    try:
        header = parse_object(raw)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is no table of texts")
        tensors = {name: _stored(name, entry, 8 + length) for name, entry in header.items()}
    except ValueError as error:
        raise CheckpointError(f"{path} has a damaged header ({error}). Copy it again.") from None
    expected = max((tensor.start + tensor.nbytes for tensor in tensors.values()), default=8 + length)
    if expected != size:
        raise CheckpointError(
            f"{path} has {size} bytes, but its header describes {expected}: it was "
            f"{'cut short while it was written or copied' if size < expected else 'changed after it was written'}. "
            "Copy it again, or delete the folder and make it again."
        )
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].nbytes)):
        if tensor.start != end:
            raise CheckpointError(
                f"{path} has a damaged header ({_short(name)} begins at byte {tensor.start}, the tensor before it ends "
                f"at {end}). Copy it again."
            )
        end = tensor.start + tensor.nbytes
    return tensors, metadata


def _stored(name: str, entry: Any, begin: int) -> StoredTensor:
    """Raises ValueError if this does not describe a tensor: its shape and dtype say how many bytes it takes."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{_short(name)} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{_short(name)} has the unknown dtype {_short(dtype)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{_short(name)} has the shape {_short(shape)} at {_short(offsets)}")
    start, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (end - start):
        raise ValueError(f"{_short(name)} is {dtype} {_short(shape)}, which takes no {_short(end - start)} bytes")
    return StoredTensor(dtype, tuple(shape), end - start, begin + start)


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _short(value: Any) -> str:
    """What a file holds, as one short line of a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
