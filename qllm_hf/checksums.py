"""Checksums of stored tensors: they find the flipped bit that no shape shows.

The metadata of a safetensors file that this package writes has, beside its format, a text of 8 hex digits for each
CRC-32:

    | names | first tensor | second tensor | ...        the tensors in the order of their names

    names     crc32 of the names, joined by line feeds
    a tensor  crc32(b"I16 [64, 16]\\n" + bytes): its dtype in safetensors' words, its shape, and what is stored

They are those of this file, or of all files of the checkpoint together. A CRC finds accidents, and is no signature:
whoever changes a file on purpose can change it too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .checkpoint import CHECKSUMS_KEY as CHECKSUMS_KEY
from .checkpoint import PACKED, SCALE, ZERO_POINT, Checkpoint, some
from .errors import CheckpointError
from .header import StoredTensor, read_header

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


def as_metadata(checksums: Mapping[str, str]) -> dict[str, str]:
    """The entry of a file's metadata that holds the checksums of tensors {name: checksum}; nothing for none."""
    names = sorted(checksums)
    return {CHECKSUMS_KEY: _crc_of(names) + "".join(checksums[name] for name in names)} if names else {}


def verify(checkpoint: Checkpoint) -> tuple[int, int]:
    """(tensors that were compared with a checksum, all tensors) of a folder, after every byte of them was read.

    Where the names are not those that the checksums are of, tensors were renamed while they were saved. Each packed one
    still has to have the checksum of some tensor; a float one without any was converted, and is not compared.

    Raises:
        CheckpointError: a tensor is not what it was when it was saved, or the files hold no checksums.
    """
    compared, damaged = 0, []
    for path in checkpoint.files:
        stored, metadata = read_header(path)
        order, sums = _read(path, metadata)
        known = next(
            (
                names
                for names in (sorted(stored), sorted(checkpoint.tensors))
                if (_crc_of(names), len(names)) == (order, len(sums))
            ),
            None,
        )
        expected = {} if known is None else dict(zip(known, sums, strict=True))
        for name, tensor in stored.items() if sums else ():
            found = checksum(tensor.dtype, tensor.shape, _pieces(path, tensor))
            is_right = found == expected[name] if expected else found in sums
            if is_right or expected or name.endswith((PACKED, SCALE, ZERO_POINT)):
                compared += 1
                damaged += [] if is_right else [f"{name} in {path.name}"]
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


def _crc_of(names: Sequence[str]) -> str:
    return f"{zlib.crc32(chr(10).join(names).encode('utf-8', 'surrogatepass')):08x}"


def _read(path: Path, metadata: dict[str, str]) -> tuple[str, list[str]]:
    """The checksum of the names, and those of the tensors."""
    text = metadata.get(CHECKSUMS_KEY, "")
    if not re.fullmatch("([0-9a-f]{8})*", text):
        raise CheckpointError(f"{path} has damaged checksums. Copy it again.")
    return text[:8], [text[place : place + 8] for place in range(8, len(text), 8)]


def _pieces(path: Path, tensor: StoredTensor) -> Iterable[bytes]:
    with path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.nbytes
        while left and (piece := file.read(min(_PIECE, left))):
            left -= len(piece)
            yield piece
