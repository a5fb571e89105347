"""Checksums of stored tensors: they find the flipped bit that no shape shows.

The header of a safetensors file that this package writes has, beside its format, {tensor name: checksum} as JSON text.
A checksum is the CRC-32 of the line `DTYPE [shape]\\n` and the bytes of the tensor, as eight hex digits:

    crc32(b"I16 [64, 16]\\n" + bytes)

It finds accidents, and is no signature: whoever changes a file on purpose can change it too.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from .checkpoint import Checkpoint, some
from .errors import CheckpointError
from .header import StoredTensor, read_header

CHECKSUMS_KEY = "qllm_crc32"
_PIECE = 2**24


def checksum(dtype: str, shape: Sequence[int], pieces: Iterable[bytes | memoryview]) -> str:
    """Eight hex digits of a tensor: its dtype in safetensors' words, its shape, and its bytes in any number of pieces.

    >>> checksum("U8", [2], [bytes([1, 2])]) == checksum("U8", [2], [b"\\x01", b"\\x02"])
    True
    >>> checksum("U8", [2], [bytes([1, 2])]) == checksum("I8", [2], [bytes([1, 2])])
    False
    """
    value = zlib.crc32(f"{dtype} {list(shape)}\n".encode())
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return f"{value:08x}"


def as_metadata(checksums: dict[str, str]) -> dict[str, str]:
    """The entry of a file's metadata that holds checksums, in the order of the names."""
    return {CHECKSUMS_KEY: json.dumps(checksums, sort_keys=True, separators=(",", ":"), ensure_ascii=False)}


def verify(checkpoint: Checkpoint) -> tuple[int, int]:
    """(tensors whose checksum was compared, all tensors) of a folder, after every byte of them was read.

    Tensors that were renamed while they were saved have no checksum under their name, and are not compared.

    Raises:
        CheckpointError: a tensor is not what it was when it was saved, or the files hold no checksums.
    """
    compared, damaged = 0, []
    for path in checkpoint.files:
        stored, metadata = read_header(path)
        checksums = _read(path, metadata)
        for name in sorted(stored.keys() & checksums.keys()):
            compared += 1
            tensor = stored[name]
            if checksum(tensor.dtype, tensor.shape, _pieces(path, tensor)) != checksums[name]:
                damaged.append(f"{name} in {path.name}")
    if damaged:
        raise CheckpointError(
            f"{str(checkpoint.folder)!r}: {len(damaged)} tensors are not what they were when they were saved: "
            f"{some(damaged)}. Copy these files again."
        )
    if not compared:
        raise CheckpointError(
            f"{str(checkpoint.folder)!r} holds no checksums, so it cannot be verified: it was saved by another "
            "program, or by qllm_hf before it wrote them. Save the model again, from files that you trust."
        )
    return compared, len(checkpoint.tensors)


def _read(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    try:
        checksums = json.loads(metadata.get(CHECKSUMS_KEY, "{}"))
        if not isinstance(checksums, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has damaged checksums ({error}). Copy it again.") from None
    return checksums


def _pieces(path: Path, tensor: StoredTensor) -> Iterable[bytes]:
    with path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.nbytes
        while left and (piece := file.read(min(_PIECE, left))):
            left -= len(piece)
            yield piece
