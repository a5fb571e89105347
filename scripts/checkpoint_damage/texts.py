"""Damage to JSON files: values, bytes, and what the index and config.json say."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from file_damage.structured import change_value
from file_damage.whole import change_bytes

from .access import INDEX, Damage


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
    return lambda rng, folder: change_value(rng, folder / file)


def in_bytes(file: str) -> Damage:
    return lambda rng, folder: change_bytes(rng, folder / file)


_ADDED = (
    ("attn_implementation", "owner/kernel"),
    ("experts_implementation", "owner/kernel"),
    ("transformers_weights", "x.bin"),
    ("auto_map", {"AutoModelForCausalLM": "x.X"}),
    ("n_layers", 10**9),
    ("layer_types", ["full_attention"] * 10**5),
    ("attn_implementation", "flash_attention_2"),
    ("num_experts", 10**9),
    ("use_cache", 3),
    ("tie_word_embeddings", True),
    ("quantization_config", []),
    ("quantization_config", {"quant_method": "gptq"}),
    ("quantization_config", "qllm"),
    ("model_type", "gpt2"),
    ("model_type", "mixtral"),
    ("model_type", "bert"),
    ("model_type", ["llama"]),
    ("dtype", "int8"),
    ("rope_parameters", {"rope_type": "yarn", "factor": -1}),
    ("rope_parameters", {"rope_type": "x"}),
    ("dtype", "x"),
    ("architectures", ["X"]),
    ("pruned_heads", {"0": [0]}),
    ("id2label", {"0": "a"}),
    ("num_labels", 10**9),
)
"""Keys of config.json that make transformers do something else."""


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
