"""Products whose weights stay where they are: what the first call finds out serves those after it.

To choose an implementation and to describe a weight to a kernel takes longer than a small product. A module keeps a
Shortcut, which checks on each call that all it depends on is still so.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..scheme import Spec
from . import cpu, registry
from .graph import Pair


class Shortcut:
    """x [..., I] times each of some packed weights, as `linear_many`, for as long as the CPU kernels are what runs.

    It holds no tensor, so that weights can be moved and unloaded: it knows them by identity and address. A copy or a
    pickle of the module that keeps it has none.
    """

    __slots__ = ("_changes", "_dtype", "_known", "_prepared", "_scale_dtypes")

    def __init__(self, prepared: cpu.Prepared, pairs: Sequence[Pair]) -> None:
        self._prepared, self._dtype = prepared, prepared.dtype
        self._changes = registry.CHOICES.changes
        self._known = [
            (_nothing, 0) if tensor is None else (weakref.ref(tensor), tensor.data_ptr())
            for tensor in tensors_of(pairs)
        ]
        # `module.to(dtype)` keeps the identity of a parameter, and memory that was freed may be given out again
        self._scale_dtypes = [(4 * index + 1, weight.scale.dtype) for index, (weight, _) in enumerate(pairs)]

    @classmethod
    def of(cls, x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> Shortcut | None:
        """One for tensors like x, or None where the kernels do not run or cannot read the weights where they are."""
        if any(registry.chosen(x, weight, activation).run_many is not cpu.linear_many for weight, _ in pairs):
            return None
        prepared = cpu.prepare(x.dtype, pairs, activation)
        return None if prepared is None or prepared.copies else cls(prepared, pairs)

    def __call__(self, x: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor] | None:
        """The products with x, for which `is_plain` holds, or None where something is no longer so.

        `tensors` are words, scale, zero point (or None) and bias (or None) of each weight.
        """
        if self._changes != registry.CHOICES.changes or x.dtype is not self._dtype:
            return None
        for tensor, (known, address) in zip(tensors, self._known):  # noqa: B905  (that costs)
            # what is gone is None as well, but had an address
            if known() is not tensor or (address if tensor is None else tensor.data_ptr() != address):
                return None
        for index, dtype in self._scale_dtypes:
            if tensors[index].dtype is not dtype:  # type: ignore[union-attr]  # it is the one that was known
                return None
        return cpu.multiply(x, self._prepared)

    def __reduce__(self) -> Any:
        return _nothing, ()


def tensors_of(pairs: Sequence[Pair]) -> list[Tensor | None]:
    """What `Shortcut` wants to see on each call."""
    return [tensor for weight, bias in pairs for tensor in (weight.words, weight.scale, weight.zero_point, bias)]


def _nothing() -> None:
    return None
