"""What a folder with a checkpoint holds, from config.json and the safetensors headers: no weights are read.

    | 8 bytes: n, little endian | n bytes: JSON {tensor name: {dtype, shape, data_offsets}} | the tensors |

The header says where the last tensor ends. A file that was cut while it was copied is shorter than that,
so comparing the two is enough never to take half a file for a whole one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMAT_KEY = "qllm_format"
PACKED, SCALE, ZERO_POINT = "_packed", "_scale", "_zero_point"
ORDER = ".input_order"
# Formats that are refused: reading them may run code, or they are other programs' own.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a header describes it: dtype in safetensors' words (F32, BF16, I16), shape, size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files were found complete.

    Attributes:
        config: config.json.
        files: the safetensors files, in the order of their names.
        tensors: name -> what the headers say about it.
        file_bytes: size of the safetensors files together.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    file_bytes: int


def read_checkpoint(folder: Path) -> Checkpoint:
    """What a folder holds, after every file was found complete.

    Raises:
        CheckpointError: a file is missing, cut short or damaged, not safetensors, of a newer format, or the packed
            tensors and config.json do not belong together. The message names the file.
    """
    config = read_config(folder)
    files, named = checkpoint_files(folder)
    tensors: dict[str, StoredTensor] = {}
    formats: set[str] = set()
    for file in files:
        stored, metadata = read_header(file)
        tensors.update(stored)
        formats |= {metadata[FORMAT_KEY]} if FORMAT_KEY in metadata else set()
    lost = sorted(named - tensors.keys())
    if lost:
        raise CheckpointError(f"{folder / INDEX} names {some(lost)}, which no file holds. Copy the checkpoint again.")
    _check_packed(folder, config, tensors, formats)
    return Checkpoint(folder, config, files, tensors, sum(file.stat().st_size for file in files))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a local folder.

    Raises:
        CheckpointError: there is no such folder, no config.json in it, or it is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is no folder. Give the folder that holds config.json.")
    path = folder / "config.json"
    if not path.is_file():
        adapter = (
            " It is an adapter: merge it into its base model first."
            if (folder / "adapter_config.json").is_file()
            else ""
        )
        raise CheckpointError(f"{str(folder)!r} holds no config.json, so it is no model folder.{adapter}")
    return _read_object(path)


def checkpoint_files(folder: Path) -> tuple[tuple[Path, ...], set[str]]:
    """The safetensors files of a folder, and the names of the tensors that its index promises (empty without an index).

    Raises:
        CheckpointError: there are none, or the index names a file that is missing.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,), set()
    if not (folder / INDEX).is_file():
        raise CheckpointError(_no_files(folder))
    weight_map = _read_object(folder / INDEX).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise CheckpointError(f"{folder / INDEX} has no weight_map. Copy the checkpoint again.")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{str(folder)!r}: {len(missing)} of {len(names)} files that {INDEX} names are missing: {some(missing)}. "
            "Copy them, or download the checkpoint again."
        )
    return tuple(folder / name for name in names), set(weight_map)


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """{tensor name: what it is} and the metadata of one safetensors file.

    Raises:
        CheckpointError: the file is shorter or longer than its header says, or the header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise CheckpointError(
                f"{path} is cut short or no safetensors file: {size} bytes do not hold its header. "
                "Copy it again, or delete the folder and make it again."
            )
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        metadata: dict[str, str] = header.pop("__metadata__", {})
        tensors = {name: _stored(entry) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}). Copy it again.") from None
    expected = 8 + length + end
    if expected != size:
        raise CheckpointError(
            f"{path} has {size} bytes, but its header describes {expected}: it was "
            f"{'cut short while it was written or copied' if size < expected else 'changed after it was written'}. "
            "Copy it again, or delete the folder and make it again."
        )
    return tensors, metadata


def settle_header(path: Path) -> None:
    """Put the metadata of a safetensors file in alphabetical order, in place.

    safetensors writes it in an order that differs from one time to the next, and the same model would have another
    hash each time it is saved. Nothing moves: the header stays as long as it was.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length)
        metadata = json.loads(raw).get("__metadata__")
        if metadata is None:
            return
        before, after = (
            json.dumps(order, separators=(",", ":"), ensure_ascii=False).encode()
            for order in (metadata, dict(sorted(metadata.items())))
        )
        settled = raw.replace(before, after, 1)
        if len(settled) == length:
            file.seek(8)
            file.write(settled)


def _stored(entry: dict[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), int(end) - int(start))


def _check_packed(folder: Path, config: dict[str, Any], tensors: dict[str, StoredTensor], formats: set[str]) -> None:
    """The packed tensors are whole, and config.json says what they are."""
    quantization = config.get("quantization_config") or {}
    ours = quantization.get("quant_method") == "qllm"
    if formats and not ours:
        raise CheckpointError(
            f"{str(folder)!r} holds packed tensors, but its config.json has no quantization_config that says how to "
            "read them. Restore the config.json that was saved with them."
        )
    if not ours:
        return
    for stored in formats:
        if stored != str(quantization.get("format", stored)):
            raise CheckpointError(
                f"{str(folder)!r}: the safetensors files have format {stored}, config.json says "
                f"{quantization.get('format')}. They do not belong together; copy the whole folder again."
            )
    if not formats:
        raise CheckpointError(
            f"{str(folder)!r}: config.json describes packed weights, but the safetensors files were not written by "
            "qllm_hf. They do not belong together: remove quantization_config from config.json, or copy the packed "
            "files."
        )
    parts = (PACKED, SCALE) if quantization.get("w_symmetric") else (PACKED, SCALE, ZERO_POINT)
    # a scale alone is not taken as a sign of a packed weight: other parameters may end in that word
    owners = {name.removesuffix(end) for name in tensors for end in (PACKED, ZERO_POINT) if name.endswith(end)}
    lost = sorted(owner + end for owner in owners for end in parts if owner + end not in tensors)
    if lost:
        raise CheckpointError(f"{str(folder)!r} lacks {some(lost)}, without which its packed weights mean nothing.")
    orders, named = sorted(name for name in tensors if name.endswith(ORDER)), quantization.get("input_orders")
    if bool(orders) != bool(named):
        raise CheckpointError(
            f"{str(folder)!r}: config.json has input_orders={named}, the layers that read their input in a stored "
            f"order, and the files hold {some(orders) or 'no order'}. They do not belong together: copy the whole "
            "folder again."
        )


def _no_files(folder: Path) -> str:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_FORMATS)
    if others:
        return (
            f"{str(folder)!r} holds {some(others)} and no safetensors files, the only ones read here. If you trust "
            f" where they come from, convert them once: AutoModelForCausalLM.from_pretrained({str(folder)!r}, "
            "use_safetensors=False).save_pretrained('converted')."
        )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return f"{str(folder)!r} holds {some(shards)}, but neither {SINGLE} nor {INDEX}, which says what is where."
    return f"{str(folder)!r} holds no {SINGLE} and no {INDEX}: the weights are missing."


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON ({error}). Is it cut short?") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object. Is it another file?")
    return value


def some(names: list[str]) -> str:
    """The first three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
