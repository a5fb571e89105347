"""Ways to damage a packed checkpoint, by name; `fuzz_checkpoints.py` tries them."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

INDEX = "model.safetensors.index.json"
Damage = Callable[[random.Random, Path], None]


class Kind(NamedTuple):
    """`other` says when other logits are no fault: never, if `bits` changed, or if files say that they are right."""

    damage: Damage
    other: Literal["never", "bits", "says so"] = "never"


DEEP = "[" * 100_000 + "]" * 100_000
RAW_VALUES = (
    *(
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "16",
        "2147483648",
        "9223372036854775807",
        "1e308",
        "1e999",
    ),
    *(
        "-0.5",
        "NaN",
        "Infinity",
        '""',
        '"x"',
        '"../../etc/passwd"',
        '"a\\u0000b"',
        '"\\ud800"',
        "[]",
        "{}",
        "[[]]",
        "[1, 2]",
    ),
    *('{"a": 1}', "1" + "0" * 400, "1" + "0" * 5000, '"' + "x" * 100_000 + '"', DEEP, '["float32"]', "1000000000"),
)
"""JSON texts that may stand where another one is expected."""


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


def flip(path: Path, place: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


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


def cut(rng: random.Random, folder: Path) -> None:
    path = rng.choice([*shards(folder), *folder.glob("*.json")])
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.choice([0, 1, 7, 8, 9, rng.randrange(len(raw)), len(raw) - 1])])


def grow(rng: random.Random, folder: Path) -> None:
    path = rng.choice([*shards(folder), *folder.glob("*.json")])
    path.write_bytes(path.read_bytes() + rng.choice([b"\0", b" x", b"}", bytes(1000)]))


def exchange(rng: random.Random, folder: Path) -> None:
    """Two files under each other's names: what the index says is where is not there, but all of it is somewhere."""
    first, second = rng.sample([*shards(folder), *folder.glob("*.json")], 2)
    first_raw, second_raw = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_raw)
    second.write_bytes(first_raw)


def copy_over(rng: random.Random, folder: Path) -> None:
    """One shard in the place of another, so that its tensors are there twice and others not at all."""
    first, second = rng.sample(shards(folder), 2)
    shutil.copyfile(first, second)


def duplicate(rng: random.Random, folder: Path) -> None:
    """A tensor of one shard in another one too, with other values."""
    path, header, _, name = holding(rng, folder, "_scale")
    other = rng.choice([shard for shard in shards(folder) if shard != path])
    begin, end = header[name]["data_offsets"]
    into, bytes_ = split(other)
    into[name] = {**header[name], "data_offsets": [len(bytes_), len(bytes_) + end - begin]}
    join(other, into, bytes_ + bytes(end - begin))


def no_file(rng: random.Random, folder: Path) -> None:
    """A pipe, a folder, a link or nothing in the place of a file."""
    path = rng.choice([*shards(folder), *folder.glob("*.json")])
    kept = folder.parent / "elsewhere"
    path.rename(kept)
    match rng.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path)
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to(kept)
        case _:
            pass


def beside(rng: random.Random, folder: Path) -> None:
    """Something under a name that transformers looks for."""
    name = rng.choice(
        ["model.safetensors", "adapter_config.json", "generation_config.json", "pytorch_model.bin", "pipe"]
    )
    path = folder / name
    path.unlink(missing_ok=True)
    match rng.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.write_bytes(rng.choice([b"", b"{}", b"[]", DEEP.encode(), b"\x80\x04."]))
        case _:
            path.write_text('{"base_model_name_or_path": "../elsewhere", "peft_type": "LORA"}')


def change_index(rng: random.Random, folder: Path) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    where = index["weight_map"]
    name = rng.choice(sorted(where))
    shard = folder.parent / "model-outside.safetensors"
    match rng.randrange(5):
        case 0 | 1:
            shutil.copyfile(folder / where[name], shard)
            out = [
                str(shard),
                f"../{shard.name}",
                f"./{where[name]}",
                f"sub/../{where[name]}",
                "/dev/zero",
                ".",
                "..",
                "",
            ]
            where[name] = rng.choice([*out, "a\0b.safetensors", "config.json", INDEX, "x" * 5000, "\ud800.safetensors"])
        case 2:
            where[name] = rng.choice([None, 1, [], {}, True, 10**400])
        case 3:
            where[rng.choice(["lost", name + "\0", ""])] = where.pop(name)
        case _:
            index["weight_map"] = rng.choice([None, [], {}, "x", 1, {name: where[name]}])
    path.write_text(json.dumps(index))


def in_text(file: str) -> Damage:
    """Change one value of a JSON file, wherever it is, into something that may not stand there."""

    def damage(rng: random.Random, folder: Path) -> None:
        path = folder / file
        found = json.loads(path.read_text())
        place = found
        while True:
            key = rng.choice(sorted(place))
            if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.1:
                break
            place = place[key]
        if rng.random() < 0.1:
            del place[key]
            path.write_text(json.dumps(found))
            return
        place[key] = "@here@"
        path.write_text(json.dumps(found).replace('"@here@"', rng.choice(RAW_VALUES), 1))

    return damage


def in_bytes(file: str) -> Damage:
    def damage(rng: random.Random, folder: Path) -> None:
        path = folder / file
        raw = path.read_bytes()
        place = rng.randrange(len(raw))
        match rng.randrange(5):
            case 0:
                path.write_bytes(raw[:place] + rng.choice([b"\xff", b"\0", b'"', b"{", DEEP.encode()]) + raw[place:])
            case 1:
                path.write_bytes(rng.choice([b"\xef\xbb\xbf" + raw, raw.decode().encode("utf-16"), raw * 2]))
            case 2:
                key = rng.choice(sorted(json.loads(raw))).encode()
                path.write_bytes(raw.rstrip()[:-1] + b', "' + key + b'": 1}')
            case 3:
                path.write_bytes(raw.rstrip()[:-1] + b', "x": ' + rng.choice(RAW_VALUES).encode() + b"}")
            case _:
                flip(path, place, rng.randrange(8))

    return damage


_ADDED = (
    *(
        ("attn_implementation", "owner/kernel"),
        ("experts_implementation", "owner/kernel"),
        ("transformers_weights", "x.bin"),
    ),
    *(("auto_map", {"AutoModelForCausalLM": "x.X"}), ("n_layers", 10**9), ("layer_types", ["full_attention"] * 10**5)),
    *(
        ("attn_implementation", "flash_attention_2"),
        ("num_experts", 10**9),
        ("use_cache", 3),
        ("tie_word_embeddings", True),
    ),
    *(("quantization_config", []), ("quantization_config", {"quant_method": "gptq"}), ("quantization_config", "qllm")),
    *(
        ("model_type", "gpt2"),
        ("model_type", "mixtral"),
        ("model_type", "bert"),
        ("model_type", ["llama"]),
        ("dtype", "int8"),
    ),
    *(
        ("rope_parameters", {"rope_type": "yarn", "factor": -1}),
        ("rope_parameters", {"rope_type": "x"}),
        ("dtype", "x"),
    ),
    *(("architectures", ["X"]), ("pruned_heads", {"0": [0]}), ("id2label", {"0": "a"}), ("num_labels", 10**9)),
)


def add_to_config(rng: random.Random, folder: Path) -> None:
    path = folder / "config.json"
    key, value = rng.choice(_ADDED)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def change_sizes(rng: random.Random, folder: Path) -> None:
    """A number of config.json that says how large the model is."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = rng.choice(sorted(key for key, value in config.items() if type(value) is int and not key.endswith("id")))
    value = config[key]
    config[key] = rng.choice([0, -1, 1, value + 1, value * 2, value // 2, 2**20, 2**31, 2**40, 2**63, 10**30])
    path.write_text(json.dumps(config))


def change_quantization(rng: random.Random, folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    quantization = config["quantization_config"]
    bits = [2, 3, 5, 8, 16, 1, 9, -4, "4", 4.0, True, None, 10**30, [4]]
    flags = [True, "yes", 1, None]
    lists = [["*"], ["*.down_proj"], "x", [1], [], ["lm_head"], ["*a" * 30 + "b"]]
    key, values = rng.choice(
        [
            *[(key, bits) for key in ("w", "a", "kv")],
            *[(key, [*bits, 0, -1, -2, 16, 64, 128]) for key in ("w_group_size", "kv_group_size")],
            *[
                (key, flags)
                for key in ("w_symmetric", "paper_exact", "kv_rotate_keys", "quantize_head", "quantize_routers")
            ],
            *[(key, lists) for key in ("modules_to_not_convert", "input_scales")],
            ("overrides", [{"*": "W8"}, {"*": 5}, {"*": "W4KV4"}, [], "x", {"*.down_proj": "W2"}, {"[": "W8"}]),
            ("method", ["gptq", "x", [], 3, None]),
            ("method_options", [{"x": 1}, [], "x", 3, {"alpha": []}]),
            ("calibration", [3, "x", [], {"imported": 3}, {"imported": {"quant_method": []}}]),
            ("format", [0, -1, 2, "1", None, 10**30, 1.0, True]),
            *[(key, [1, "x", None]) for key in ("samples", "seqlen", "bits_per_weight", "tokenizer", "unknown")],
        ]
    )
    quantization[key] = rng.choice(values)
    path.write_text(json.dumps(config))


SCALES = {"nan": b"\0\0\xc0\x7f", "inf": b"\0\0\x80\x7f", "minus inf": b"\0\0\x80\xff"}
KINDS = {
    "header dtype": Kind(in_entry(change_dtype), "bits"),
    "header shape": Kind(in_entry(change_shape)),
    "header offsets": Kind(in_entry(change_offsets)),
    "header keys": Kind(in_entry(change_keys)),
    "header metadata": Kind(in_header(change_metadata)),
    "header hostile text": Kind(in_header(hostile_text)),
    "header key twice": Kind(in_header(twice)),
    "header length": Kind(change_length),
    "header of megabytes": Kind(large_header),
    "header bit": Kind(flip_header, "bits"),
    "tensor renamed": Kind(in_header(rename)),
    "tensors swapped": Kind(in_header(swap_names), "bits"),
    "tensor missing": Kind(in_header(forget)),
    "tensor extra": Kind(in_header(add)),
    "tensor in two files": Kind(duplicate),
    "scale nan or inf": Kind(put("_scale", lambda rng: rng.choice(list(SCALES.values())))),
    "scale odd": Kind(
        put("_scale", lambda rng: struct.pack("<f", rng.choice([0.0, -0.0, -1.0, 1e-42, 3e38, -1e-42]))), "bits"
    ),
    "zero point out of range": Kind(put("_zero_point", lambda rng: bytes([rng.randrange(16, 256)]))),
    "bit of words": Kind(flip_data("_packed"), "bits"),
    "bit of a scale": Kind(flip_data("_scale"), "bits"),
    "bit of a zero point": Kind(flip_data("_zero_point"), "bits"),
    "bit of a float weight": Kind(flip_data("norm.weight"), "bits"),
    "file cut": Kind(cut),
    "file longer": Kind(grow),
    "files exchanged": Kind(exchange),
    "file copied over another": Kind(copy_over),
    "no file, link or pipe": Kind(no_file),
    "something beside": Kind(beside),
    "index": Kind(change_index),
    "index value": Kind(in_text(INDEX)),
    "index bytes": Kind(in_bytes(INDEX)),
    "config value": Kind(in_text("config.json"), "says so"),
    "config bytes": Kind(in_bytes("config.json"), "says so"),
    "config key added": Kind(add_to_config, "says so"),
    "config sizes": Kind(change_sizes, "says so"),
    "quantization_config": Kind(change_quantization, "says so"),
    "generation config value": Kind(in_text("generation_config.json")),
    "generation config bytes": Kind(in_bytes("generation_config.json")),
    "tokenizer value": Kind(in_text("tokenizer.json"), "says so"),
    "tokenizer bytes": Kind(in_bytes("tokenizer.json"), "says so"),
    "tokenizer config value": Kind(in_text("tokenizer_config.json"), "says so"),
    "tokenizer config bytes": Kind(in_bytes("tokenizer_config.json"), "says so"),
}
