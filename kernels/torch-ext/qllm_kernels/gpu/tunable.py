"""What can be tuned: the operations that take a config, the values to try, and random operands of a shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from . import attention, integers, weights
from .encode import encode_rows_into
from .planar import row_words


class Operands(NamedTuple):
    """What a product or attention reads, once, and its bytes; `run(config)` returns the result."""

    run: Callable[[Any], Tensor]
    nbytes: int


class Operation(NamedTuple):
    """What can be tuned.

    Attributes:
        fields: names of what makes a shape, in the order of the command line: a shape, bits, group size, batch.
        values: of each field of a config, those to try.
        default: config of a shape and a size.
        operands: random ones of a shape and a size on a device.
        refusals: what a config raises that the compiler, the device or the operation does not take.
    """

    fields: tuple[str, ...]
    values: Mapping[str, tuple[int, ...]]
    default: Callable[[Mapping[str, int], int], Any]
    operands: Callable[[Mapping[str, int], int, torch.device], Operands]
    refusals: tuple[type[Exception], ...] = (ValueError, OutOfResources, PTXASError, CompilationError)


def _weight(shape: Mapping[str, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random words, scales and zero points of a weight."""
    outputs, inputs, bits, group_size = (shape[name] for name in ("outputs", "inputs", "bits", "group_size"))
    groups = -(-inputs // group_size) if group_size > 0 else 1
    words = torch.randint(-(2**15), 2**15, (outputs, row_words(inputs, bits)), dtype=torch.int16, device=device)
    scale = (0.5 + torch.rand(outputs, groups, device=device)).bfloat16() * 2.0**-bits
    return words, scale, torch.randint(0, 2**bits, (outputs, groups), dtype=torch.uint8, device=device)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _linear_operands(shape: Mapping[str, int], size: int, device: torch.device) -> Operands:
    packed = _weight(shape, device)
    x = torch.randn(size, shape["inputs"], device=device).bfloat16()
    form: dict[str, Any] = {"bits": shape["bits"], "group_size": shape["group_size"], "length": shape["inputs"]}
    return Operands(lambda config: weights.linear(x, *packed, **form, config=config), _bytes(*packed))


def _integer_operands(shape: Mapping[str, int], size: int, device: torch.device) -> Operands:
    packed = _weight(shape, device)
    x = torch.randn(size, shape["inputs"], device=device).bfloat16()
    form: dict[str, Any] = {"bits": shape["bits"], "group_size": shape["group_size"], "length": shape["inputs"]}
    form |= {"activation_bits": 8, "activation_symmetric": True}
    return Operands(lambda config: integers.linear(x, *packed, **form, config=config), _bytes(*packed))


def _history(shape: Mapping[str, int], size: int, device: torch.device) -> Tensor:
    """Rows int16 of random vectors, whose speed does not depend on them: those of some tokens, repeated."""
    bits, group_size, dim = shape["bits"], shape["group_size"], shape["dim"]
    vectors = torch.randn(shape["batch"], shape["kv_heads"], min(size, 512), dim, device=device).bfloat16()
    groups = -(-dim // group_size) if group_size > 0 else 1
    rows = vectors.new_empty((*vectors.shape[:3], row_words(dim, bits) + groups + -(-groups // 2)), dtype=torch.int16)
    encode_rows_into(vectors, rows, bits=bits, group_size=group_size, symmetric=False)
    return rows.repeat(1, 1, -(-size // rows.shape[2]), 1)[:, :, :size].contiguous()


def _attention_operands(shape: Mapping[str, int], size: int, device: torch.device) -> Operands:
    keys, values = _history(shape, size, device), _history(shape, size, device)
    query = torch.randn(shape["batch"], shape["heads"], 1, shape["dim"], device=device).bfloat16()
    form: dict[str, Any] = {"key_bits": shape["bits"], "value_bits": shape["bits"], "group_size": shape["group_size"]}

    def run(config: Any) -> Tensor:
        scale = shape["dim"] ** -0.5
        return attention.attend(query, keys, values, **form, symmetric=False, scale=scale, config=config)

    return Operands(run, _bytes(keys, values))


def _attention_default(shape: Mapping[str, int], size: int) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.empty(shape["batch"], shape["heads"], 1, shape["dim"], dtype=torch.bfloat16, device=device)
    values = {"value_bits": shape["bits"], "value_dim": shape["dim"], "value_group_size": shape["group_size"]}
    return attention.default_config(query, shape["kv_heads"], size, **values)


_WEIGHT = ("outputs", "inputs", "bits", "group_size")
OPERATIONS = {
    "linear": Operation(
        _WEIGHT,
        {
            "SPLITS": (1, 2, 3, 4, 6, 8, 12, 16, 32),
            "BLOCK_N": (32, 64, 128),
            "BLOCK_M": (8, 16, 32, 64, 128),
            "num_warps": (2, 4, 8),
            "num_stages": (2, 3, 4, 5, 6),
        },
        lambda shape, size: weights.default_config(size, *(shape[name] for name in _WEIGHT)),
        _linear_operands,
    ),
    "integers": Operation(
        _WEIGHT,
        {
            "SPLITS": (1, 2, 3, 4, 6, 8, 12, 16),
            "BLOCK_N": (32, 64, 128, 256),
            "BLOCK_M": (8, 16, 32, 64, 128, 256),
            "num_warps": (4, 8),
            "num_stages": (2, 3, 4),
        },
        lambda shape, size: integers.default_config(size, *(shape[name] for name in _WEIGHT)),
        _integer_operands,
    ),
    "attention": Operation(
        ("heads", "kv_heads", "dim", "bits", "group_size", "batch"),
        {
            "SPLITS": (1, 2, 4, 8, 16, 32, 64, 128),
            "BLOCK_T": (32, 64, 128),
            "num_warps": (1, 2, 4, 8),
            "num_stages": (1, 2, 3, 4),
        },
        _attention_default,
        _attention_operands,
    ),
}
