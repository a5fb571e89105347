"""Ways to damage a packed checkpoint, by name; `fuzz_checkpoints.py` tries them."""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from .access import INDEX, Damage
from .files import beside, copy_over, cut, exchange, grow, no_file
from .tensors import (
    add,
    change_dtype,
    change_keys,
    change_length,
    change_metadata,
    change_offsets,
    change_shape,
    duplicate,
    flip_data,
    flip_header,
    forget,
    hostile_text,
    in_entry,
    in_header,
    large_header,
    put,
    rename,
    swap_names,
    twice,
)
from .texts import add_to_config, change_index, change_quantization, change_sizes, in_bytes, in_text


class Kind(NamedTuple):
    """`other` says when other logits are no fault: never, if `bits` changed, or if files say that they are right."""

    damage: Damage
    other: Literal["never", "bits", "says so"] = "never"


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
