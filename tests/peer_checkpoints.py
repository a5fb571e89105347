"""Checkpoints in the published layouts of other libraries, written bit by bit in plain Python, and what they mean.

Nothing here is taken from the package: the quantizer is a loop over groups, a row of words is one long integer. Each
checkpoint comes with a float one beside it, which holds the weights that its integers stand for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_models import float_model

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Integers:
    """A weight [O, I] as codes, with scale and zero point [O, G]."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group: np.ndarray  # [I], the group of each column

    def meaning(self) -> torch.Tensor:
        """The float32 weight."""
        steps = self.codes.astype(np.float64) - self.zero[:, self.group]
        values = steps * self.scale.astype(np.float64)[:, self.group]
        return torch.from_numpy(values.astype(np.float32))


def integers(weight: np.ndarray, bits: int, size: int, symmetric: bool, order: np.ndarray | None = None) -> Integers:
    """Rounded to nearest with float16 scales; `order` gives the columns of each group where they are no neighbours."""
    rows, columns = weight.shape
    size = columns if size == -1 else size
    order = np.arange(columns) if order is None else order
    group = np.empty(columns, dtype=np.int64)
    group[order] = np.arange(columns) // size
    groups, top = group.max() + 1, 2**bits - 1
    scale, zero = np.empty((rows, groups), np.float16), np.empty((rows, groups), np.int64)
    codes = np.empty((rows, columns), np.int64)
    for g in range(groups):
        part = weight[:, group == g].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        step = np.maximum(-low, high) / (top // 2) if symmetric else (high - low) / top
        scale[:, g] = np.maximum(step, 1e-4)
        wide = scale[:, g].astype(np.float64)
        zero[:, g] = (top + 1) // 2 if symmetric else np.clip(np.round(-low / wide), 0, top)
        codes[:, group == g] = np.clip(np.round(part / wide[:, None]) + zero[:, g, None], 0, top)
    return Integers(codes, scale, zero, group)


def words_of(codes: Any, bits: int) -> list[int]:
    """A stream of codes as signed 32-bit words, lowest bits first."""
    whole = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    words = [(whole >> (32 * place)) & 0xFFFFFFFF for place in range(-(-len(codes) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def _less_one(words: list[int], bits: int) -> list[int]:
    """1 taken from all fields of each word at once, as GPTQModel does with 2, 4 and 8 bits."""
    ones = sum(1 << shift for shift in range(0, 32, bits))
    found = [(word - ones) & 0xFFFFFFFF for word in words]
    return [word - 2**32 if word >= 2**31 else word for word in found]


def gptq(found: Integers, bits: int, *, first: bool, g_idx: bool = True) -> Parts:
    zeros = [words_of((column - (bits == 3 and first)) & (2**bits - 1), bits) for column in found.zero.T]
    if first and bits != 3:
        zeros = [_less_one(row, bits) for row in zeros]
    parts = {
        "qweight": np.array([words_of(row, bits) for row in found.codes], np.int32).T,
        "qzeros": np.array(zeros, np.int32),
        "scales": found.scale.T,
    }
    return {**parts, "g_idx": found.group.astype(np.int32)} if g_idx else parts


def awq(found: Integers, bits: int) -> Parts:
    def row(codes: np.ndarray) -> list[int]:
        return words_of(codes.reshape(-1, 8)[:, AWQ_ORDER].reshape(-1) if bits == 4 else codes, bits)

    return {
        "qweight": np.array([row(column) for column in found.codes.T], np.int32),
        "qzeros": np.array([row(column) for column in found.zero.T], np.int32),
        "scales": found.scale.T,
    }


def pack_quantized(found: Integers, bits: int, *, symmetric: bool, g_idx: bool = False) -> Parts:
    parts = {
        "weight_packed": np.array([words_of(row, bits) for row in found.codes], np.int32),
        "weight_scale": found.scale,
        "weight_shape": np.array(found.codes.shape, np.int64),
        **({"weight_g_idx": found.group.astype(np.int32)} if g_idx else {}),
    }
    zeros = np.array([words_of(column, bits) for column in found.zero.T], np.int32).T
    return parts if symmetric else {**parts, "weight_zero_point": zeros}


def int_quantized(found: Integers, *, symmetric: bool) -> Parts:
    parts = {"weight": (found.codes - 128).astype(np.int8), "weight_scale": found.scale}
    return parts if symmetric else {**parts, "weight_zero_point": (found.zero - 128).astype(np.int8)}


@dataclass(frozen=True)
class Case:
    """A checkpoint: which model, its integers, how each layer is stored, and the quantization_config."""

    family: str
    bits: int
    size: int
    symmetric: bool
    write: Callable[[Integers], Parts]
    config: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    order: Callable[[str, int], np.ndarray] | None = None  # (name, columns) -> columns in the order of their groups
    has_positive_rows: bool = False


def is_quantized(name: str) -> bool:
    return name.endswith((".weight",)) and any(
        f".{word}." in name
        for word in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3",
                     "c_attn", "c_proj", "c_fc")
    )  # fmt: skip


def write_checkpoint(case: Case, folder: Path, floats: Path) -> None:
    """The checkpoint in `folder`, in several files, and what it means in `floats`."""
    model = float_model(case.family)
    for key, value in case.changes.items():
        setattr(model.config, key, value)
    if case.changes:
        model = type(model)(model.config)
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(floats)
    tensors, meanings = load_file(floats / "model.safetensors"), {}
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not is_quantized(name):
            stored[name] = meanings[name] = tensor
            continue
        matrix = tensor.numpy().T if case.family == "gpt2" else tensor.numpy()
        if case.has_positive_rows:  # whose zero point is 0
            matrix[::3] = np.abs(matrix[::3])
        order = None if case.order is None else case.order(name, matrix.shape[1])
        found = integers(matrix, case.bits, case.size, case.symmetric, order)
        meaning = found.meaning()
        meanings[name] = meaning.T.contiguous() if case.family == "gpt2" else meaning
        layer = name.removesuffix(".weight")
        for part, value in case.write(found).items():
            stored[f"{layer}.{part}"] = torch.from_numpy(np.ascontiguousarray(value))
    save_file(meanings, floats / "model.safetensors", metadata={"format": "pt"})
    save_shards(stored, folder)
    config = json.loads((floats / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": case.config}))


def save_shards(tensors: dict[str, torch.Tensor], folder: Path, count: int = 2) -> None:
    """Two files and an index; parts of one layer lie in both."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        shard = {name: tensors[name] for name in names[number::count]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


GPTQMODEL = {"meta": {"quantizer": ["gptqmodel:7.6.0"]}}
EVEN = {"intermediate_size": 96}  # 3 bits fill whole words in multiples of 32 only


def ct_config(bits: int, *, strategy: str, symmetric: bool, size: int | None = None, form: str = "pack-quantized",
              inputs: dict[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": size,
               "dynamic": False}  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def act_order(name: str, columns: int) -> np.ndarray:
    """Columns in the order in which they get their groups: of each layer another one, as the Hessians say."""
    return np.random.default_rng(list(name.encode())).permutation(columns)


CASES = {
    "gptq symmetric": Case(
        "llama", 4, 32, True, lambda x: gptq(x, 4, first=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
    ),
    "gptq with borrow": Case(
        "llama", 4, 32, False, lambda x: gptq(x, 4, first=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, **GPTQMODEL}, has_positive_rows=True,
    ),
    "gptq 3 bits": Case(
        "llama", 3, 32, False, lambda x: gptq(x, 3, first=True, g_idx=False),
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "sym": False, **GPTQMODEL}, EVEN,
    ),
    "gptq_v2 2 bits": Case(
        "llama", 2, 32, False, lambda x: gptq(x, 2, first=False),
        {"quant_method": "gptq", "bits": 2, "group_size": 32, "checkpoint_format": "gptq_v2", "sym": False}, EVEN,
    ),
    "gptq 8 bits of channels": Case(
        "gpt2", 8, -1, True, lambda x: gptq(x, 8, first=True),
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True},
    ),
    "gptq in act order": Case(
        "llama", 4, 32, False, lambda x: gptq(x, 4, first=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True, **GPTQMODEL},
        order=act_order, has_positive_rows=True,
    ),
    "gptq in act order of channels": Case(
        "gpt2", 8, 16, True, lambda x: gptq(x, 8, first=False),
        {"quant_method": "gptq", "bits": 8, "group_size": 16, "checkpoint_format": "gptq_v2", "desc_act": True},
        order=act_order,
    ),
    "pack-quantized in act order": Case(
        "llama", 3, 32, False, lambda x: pack_quantized(x, 3, symmetric=False, g_idx=True),
        ct_config(3, strategy="group", symmetric=False, size=32), order=act_order,
    ),
    "gptq experts": Case(
        "mixtral", 4, 32, False, lambda x: gptq(x, 4, first=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2", "sym": False},
    ),
    "awq": Case(
        "llama", 4, 32, False, lambda x: awq(x, 4),
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    ),
    "auto-round": Case(
        "llama", 4, 32, True, lambda x: gptq(x, 4, first=True, g_idx=False),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq",
         "autoround_version": "0.15.1"},
    ),
    "pack-quantized experts": Case(
        "qwen3_moe", 4, 32, True, lambda x: pack_quantized(x, 4, symmetric=True),
        ct_config(4, strategy="group", symmetric=True, size=32),
    ),
    "pack-quantized 3 bits": Case(
        "llama", 3, 32, False, lambda x: pack_quantized(x, 3, symmetric=False),
        ct_config(3, strategy="group", symmetric=False, size=32),
    ),
    "int-quantized": Case(
        "llama", 8, -1, False, lambda x: int_quantized(x, symmetric=False),
        ct_config(8, strategy="channel", symmetric=False, form="int-quantized"),
    ),
}  # fmt: skip
