"""Rows whose columns are stored in another order than the layer's inputs come in.

GPTQ in act order gives groups to columns as it quantizes them, the most important first, so that the columns of a group
are spread over the row. Sorted by group they are neighbours, which is what a packed row needs, and the order is kept:

    column of the weight    0  1  2  3  4  5        sorted by group, order =  1  3  4 | 0  2  5
    its group               1  0  1  0  0  1        (column k of the packed row multiplies input order[k])

Moving columns rounds nothing: codes, scales and zero points stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .checkpoint import ORDER, some
from .errors import CheckpointError


def sorted_by_group(groups: Tensor, group_size: int) -> Tensor | None:
    """int32 [I]: the columns sorted by (group, position), or None where they are so already.

    Args:
        groups: integers [I], the group of each column.

    Raises:
        ValueError: a group does not have `group_size` columns, the last one what is left over.
    """
    groups, plain = groups.to(torch.int64), torch.arange(groups.numel()) // group_size
    if groups.equal(plain):
        return None
    order = groups.argsort(stable=True)
    if not groups[order].equal(plain):
        raise ValueError(f"its groups are not of {group_size} columns each, which rows of packed groups cannot say")
    return order.to(torch.int32)


def in_own_order(matrix: Tensor, order: Tensor) -> Tensor:
    """A matrix [.., O, I] with its columns in the order of the inputs, from one whose column k is of input order[k]."""
    return matrix.index_select(-1, order.argsort())


def check_order(order: Tensor, name: str) -> Tensor:
    """The order itself. Raises CheckpointError if it is no permutation of 0 .. I-1, stored as int32."""
    whole = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
    if order.dtype != torch.int32 or order.dim() != 1 or not order.sort().values.equal(whole):
        raise CheckpointError(
            f"{name} is no order of a layer's inputs, each of 0 to {order.numel() - 1} once as int32. The file is "
            "damaged: copy the checkpoint again."
        )
    return order


def check_stored_orders(files: Iterable[str | Path], count: int) -> None:
    """Raises CheckpointError if the files of a checkpoint do not hold `count` orders, or one is none (`check_order`).

    They are read before the model is, because weights that are offloaded to disk never come by. An order that nobody
    asks for would be left in the files, and the layer that it belongs to would compute something else.
    """
    found = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in (name for name in file.keys() if name.endswith(ORDER)):  # noqa: SIM118
                check_order(file.get_tensor(name), name)
                found.append(name)
    if len(found) != count:
        raise CheckpointError(
            f"config.json names {count} layers that read their input in a stored order (input_orders), and the files "
            f"hold {len(found)} ({some(sorted(found)) or 'none'}). They do not belong together: copy the whole folder "
            "again."
        )
