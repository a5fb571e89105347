"""What a folder with a checkpoint holds, from config.json and the safetensors headers: no weights are read.

A folder may come from anywhere. What its files say about each other is compared before anything is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .header import StoredTensor as StoredTensor
from .header import read_header as read_header
from .strict_json import LARGEST_JSON, parse_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMAT_KEY = "qllm_format"
CHECKSUMS_KEY = "qllm_crc32"
PACKED, SCALE, ZERO_POINT = "_packed", "_scale", "_zero_point"
ORDER = ".input_order"
# Formats that are refused: reading them may run code, or they are other programs' own.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
FLOATS = ("F16", "BF16", "F32", "F64")


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
    check_kinds(folder)
    files, named = checkpoint_files(folder)
    tensors: dict[str, StoredTensor] = {}
    formats: set[str] = set()
    said: dict[Path, dict[str, str]] = {}
    for file in files:
        stored, metadata = read_header(file)
        said[file] = metadata
        twice = sorted(stored.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{file} holds {some(twice)}, and so does another file. Copy the checkpoint again.")
        tensors.update(stored)
        formats |= {metadata[FORMAT_KEY]} if FORMAT_KEY in metadata else set()
    lost = sorted(named - tensors.keys())
    if lost:
        raise CheckpointError(f"{folder / INDEX} names {some(lost)}, which no file holds. Copy the checkpoint again.")
    _check_packed(folder, config, tensors, formats)
    check_one_save(said)
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
    return read_object(path)


def checkpoint_files(folder: Path) -> tuple[tuple[Path, ...], set[str]]:
    """The safetensors files of a folder, and the names of the tensors that its index promises (empty without an index).

    Raises:
        CheckpointError: there are none, or the index names a file that is missing.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,), set()
    if not (folder / INDEX).is_file():
        raise CheckpointError(_no_files(folder))
    weight_map = read_object(folder / INDEX).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise CheckpointError(f"{folder / INDEX} has no weight_map. Copy the checkpoint again.")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if not _is_plain(name)]
    if outside:
        raise CheckpointError(
            f"{folder / INDEX} names {some([repr(name) for name in outside])}, which is no safetensors file in this "
            "folder. Nothing outside of it is read: copy the checkpoint again, from a source that you trust."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{str(folder)!r}: {len(missing)} of {len(names)} files that {INDEX} names are missing: {some(missing)}. "
            "Copy them, or download the checkpoint again."
        )
    return tuple(folder / name for name in names), set(weight_map)


def check_one_save(metadata: Mapping[Path, Mapping[str, str]]) -> None:
    """Raises CheckpointError if files are parts of two models with the same names, shapes and format.

    transformers writes into a folder file by file. Where that was stopped, some are of the model that was there before;
    each of them has the checksums of all tensors that were to be saved with it (`qllm_hf.checksums`).

    Args:
        metadata: of the header of each file.
    """
    first: dict[str, tuple[Path, str]] = {}
    for path, found in metadata.items():
        sums = found.get(CHECKSUMS_KEY, "")
        before, known = first.setdefault(sums[:8], (path, sums))  # which begin with that of the names
        if known != sums:
            raise CheckpointError(
                f"{before} and {path} are parts of two models: each has checksums of tensors that the other does not "
                "hold. Was the model that was here being replaced, and that stopped? Save or copy the whole folder "
                "again."
            )


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


def _is_plain(name: str) -> bool:
    """Whether this is the name of a file, and no path to one elsewhere."""
    return name.endswith(".safetensors") and len(name) < 200 and not {"/", "\\", "\0", ":"} & set(name)


def check_kinds(folder: Path) -> None:
    """Raises CheckpointError if something in the folder is neither a file nor a folder: reading a pipe may never end.

    Links are followed: the cache of the Hub is made of them.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path} is no file (a pipe, a socket or a device). Remove it.")


def _check_packed(folder: Path, config: dict[str, Any], tensors: dict[str, StoredTensor], formats: set[str]) -> None:
    """The packed tensors are whole, and config.json says what they are."""
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise CheckpointError(f"{folder / 'config.json'}: its quantization_config is no object. Is it damaged?")
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
    for owner in sorted(owners):
        _check_parts(folder, owner, {end: tensors[owner + end] for end in parts})
    if ZERO_POINT not in parts and (
        left := sorted(owner + ZERO_POINT for owner in owners if owner + ZERO_POINT in tensors)
    ):
        raise CheckpointError(
            f"{str(folder)!r} holds {some(left)}, but its config.json says w_symmetric: weights without zero points. "
            "They do not belong together; copy the whole folder again."
        )
    orders, named = sorted(name for name in tensors if name.endswith(ORDER)), quantization.get("input_orders")
    if bool(orders) != bool(named):
        raise CheckpointError(
            f"{str(folder)!r}: config.json has input_orders={named}, the layers that read their input in a stored "
            f"order, and the files hold {some(orders) or 'no order'}. They do not belong together: copy the whole "
            "folder again."
        )


def _check_parts(folder: Path, owner: str, parts: dict[str, StoredTensor]) -> None:
    """The parts of a packed weight have the types that the format says, and as many zero points as scales."""
    for end, allowed in ((PACKED, ("I16",)), (SCALE, FLOATS), (ZERO_POINT, ("U8",))):
        if end in parts and parts[end].dtype not in allowed:
            raise CheckpointError(
                f"{str(folder)!r}: {owner + end} is {parts[end].dtype}, and has to be {' or '.join(allowed)}. "
                "The file is damaged, or of another program: copy it again."
            )
    if ZERO_POINT in parts and parts[ZERO_POINT].shape != parts[SCALE].shape:
        raise CheckpointError(
            f"{str(folder)!r}: {owner + SCALE} is {list(parts[SCALE].shape)} and {owner + ZERO_POINT} "
            f"{list(parts[ZERO_POINT].shape)}: a group has one of each. Copy the folder again."
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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: it holds none, or none that can be trusted (`qllm_hf.strict_json`).
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise ValueError(f"{size} bytes, where {LARGEST_JSON} are allowed")
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON object ({error}). Is it cut short, or another file?") from None


def some(names: list[str]) -> str:
    """The first three names, and how many more; of names without end, what they begin with."""
    first = (name if len(name) <= 200 else f"{name[:197]}..." for name in names[:3])
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
