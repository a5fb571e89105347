"""Damage inside safetensors files: to what a header says, and to the bytes of tensors."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from file_damage.values import DEEP, RAW_VALUES, flip

from .access import Damage, holding, join, names, shards, split


def in_entry(change: Callable[[random.Random, dict[str, Any]], None]) -> Damage:
    """Change what a header says about one tensor."""

    def damage(rng: random.Random, folder: Path) -> None:
        path, header, data, name = holding(rng, folder, "")
        change(rng, header[name])
        join(path, header, data)

    return damage


def change_dtype(rng: random.Random, entry: dict[str, Any]) -> None:
    entry["dtype"] = rng.choice(
        ["F32", "F16", "BF16", "I8", "I16", "U16", "U8", "BOOL", "F64", "I64", "F4", "F8_E4M3", "X", 3]
    )


def change_size(rng: random.Random, sizes: list[Any]) -> None:
    hostile = [
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        10**30,
        1.5,
        "4",
        None,
        True,
        [1],
        sizes[0] + 1,
        sizes[-1] - 1,
        sizes[-1] * 2,
    ]
    sizes[rng.randrange(len(sizes))] = rng.choice(hostile)


def change_shape(rng: random.Random, entry: dict[str, Any]) -> None:
    match rng.randrange(4):
        case 0:
            entry["shape"].reverse()
        case 1:
            entry["shape"].insert(0, rng.choice([0, 1, 2]))
        case 2:
            entry["shape"] = rng.choice([[], None, "64", 64, [1] * 100, {"0": 1}])
        case _:
            change_size(rng, entry["shape"])


def change_offsets(rng: random.Random, entry: dict[str, Any]) -> None:
    match rng.randrange(4):
        case 0:
            entry["data_offsets"].reverse()
        case 1:
            by = rng.choice([-8, -1, 1, 2, 8, 10**9])
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]
        case 2:
            entry["data_offsets"] = rng.choice([[], None, [0], [0, 1, 2], "0", {"0": 0}])
        case _:
            change_size(rng, entry["data_offsets"])


def change_keys(rng: random.Random, entry: dict[str, Any]) -> None:
    if rng.random() < 0.7:
        del entry[rng.choice(sorted(entry))]
    else:
        entry["strides"] = [1]


def in_header(change: Callable[[random.Random, dict[str, Any], bytes], tuple[dict[str, Any] | bytes, bytes]]) -> Damage:
    """Change a header, or what follows it."""

    def damage(rng: random.Random, folder: Path) -> None:
        path = rng.choice(shards(folder))
        join(path, *change(rng, *split(path)))

    return damage


def rename(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    name = rng.choice(names(header))
    new = rng.choice(
        ["", "x", name + "\0", "../" + name, name.upper(), name + "_packed", "\ud800", "x" * 100_000, name[:-1]]
    )
    header[new] = header.pop(name)
    return header, data


def swap_names(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    first, second = rng.choice(names(header)), rng.choice(names(header))
    header[first], header[second] = header[second], header[first]
    return header, data


def forget(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """A tensor that is gone, with its bytes or without."""
    entry = header.pop(rng.choice(names(header)))
    begin, end = entry["data_offsets"]
    if rng.random() < 0.5:
        return header, data
    for other in header.values():
        if "data_offsets" in other and other["data_offsets"][0] >= end:
            other["data_offsets"] = [offset - (end - begin) for offset in other["data_offsets"]]
    return header, data[:begin] + data[end:]


def add(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """A tensor too many."""
    owner = rng.choice(names(header)).rpartition("_")[0]
    name = rng.choice(["extra", "x_packed", owner + "_zero_point", owner + ".input_scale", "y_scale", "lm_head.bias"])
    header.setdefault(name, {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]})
    return header, data + bytes(4) if header[name]["data_offsets"][0] == len(data) else data


def twice(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[bytes, bytes]:
    """A key that is there two times."""
    name = rng.choice([*names(header), "__metadata__"])
    text = json.dumps(header).encode()
    return text[:-1] + b", " + json.dumps({name: header[rng.choice(list(header))]}).encode()[1:], data


def change_metadata(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    values = rng.choice(
        [None, [], "x", {"format": 1}, {"format": "pt", "qllm_format": "7"}, {"format": "tf"}, {}, {"a": {}}]
    )
    header["__metadata__"] = values
    if isinstance(values, dict) and rng.random() < 0.3:
        header["__metadata__"] = {
            "format": "pt",
            "qllm_format": "1",
            "qllm_crc32": rng.choice(["", "[", "[]", '{"a": 1}', DEEP]),
        }
    return header, data


def hostile_text(rng: random.Random, header: dict[str, Any], data: bytes) -> tuple[bytes, bytes]:
    texts = [
        DEEP.encode(),
        b'{"a":' * 50_000,
        b"\xff\xfe{",
        json.dumps(header).encode("utf-16"),
        b"",
        b"{}",
        b"null",
        b"[]",
    ]
    texts += [b'{"a": ' + text.encode("utf-8", "surrogatepass") + b"}" for text in RAW_VALUES]
    return rng.choice([*texts, b'{"' + b"x" * 10**6 + b'": 1}', bytes(rng.randrange(256) for _ in range(200))]), data


def change_length(rng: random.Random, folder: Path) -> None:
    path = rng.choice(shards(folder))
    raw = path.read_bytes()
    true = int.from_bytes(raw[:8], "little")
    length = rng.choice([0, 1, true - 1, true + 1, len(raw), 2**31, 2**40, 2**63, 2**64 - 1, 99_999_999])
    path.write_bytes(length.to_bytes(8, "little") + raw[8:])


def large_header(rng: random.Random, folder: Path) -> None:
    """Megabytes of JSON, which take many times as much as Python objects."""
    path = rng.choice(shards(folder))
    header, data = split(path)
    piece = rng.choice([b"[],", b"{},", b"0,", b'"",', b"1.5,"])
    text = json.dumps(header).encode()[:-1] + b', "x": [' + piece * (8_000_000 // len(piece)) + b"0]}"
    join(path, text, data)


def flip_header(rng: random.Random, folder: Path) -> None:
    path = rng.choice(shards(folder))
    flip(path, rng.randrange(8 + int.from_bytes(path.read_bytes()[:8], "little")), rng.randrange(8))


def flip_data(ending: str) -> Damage:
    def damage(rng: random.Random, folder: Path) -> None:
        path, header, data, name = holding(rng, folder, ending)
        begin, end = header[name]["data_offsets"]
        flip(path, path.stat().st_size - len(data) + rng.randrange(begin, end), rng.randrange(8))

    return damage


def put(ending: str, pattern: Callable[[random.Random], bytes]) -> Damage:
    """Write the bytes of a value somewhere into a tensor with such a name."""

    def damage(rng: random.Random, folder: Path) -> None:
        path, header, data, name = holding(rng, folder, ending)
        begin, end = header[name]["data_offsets"]
        value = pattern(rng)
        place = begin + rng.randrange((end - begin) // len(value)) * len(value)
        join(path, header, data[:place] + value + data[place + len(value) :])

    return damage


def duplicate(rng: random.Random, folder: Path) -> None:
    """A tensor of one shard in another one too, with other values."""
    path, header, _, name = holding(rng, folder, "_scale")
    other = rng.choice([shard for shard in shards(folder) if shard != path])
    begin, end = header[name]["data_offsets"]
    into, bytes_ = split(other)
    into[name] = {**header[name], "data_offsets": [len(bytes_), len(bytes_) + end - begin]}
    join(other, into, bytes_ + bytes(end - begin))
