"""A tensor that refuses to be written to.

Other code reads `linear.weight` (Mamba's mixer, LoRA merging). A packed layer answers with a dequantized
copy; a write to that copy would be lost without a trace, so it raises instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

_ALLOWED_IN_PLACE = frozenset({"requires_grad_"})
_WRITES = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__set__"})


class ReadOnlyTensor(torch.Tensor):
    """A dequantized copy of a packed weight. Its views are read-only too; what is computed from it is ordinary."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name not in _ALLOWED_IN_PLACE
        written = [kwargs.get("out")]
        if in_place or name in _WRITES:
            written += [args[0] if args else next(iter(kwargs.values()), None)]
        if any(isinstance(tensor, ReadOnlyTensor) for tensor in written):
            raise ModelError(
                f"this weight is packed and read-only ({name}): a change to the dequantized copy would be lost. "
                "Call model.dequantize() first, or change the float model and quantize it again."
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            sources = [tensor for tensor in (*args, *kwargs.values()) if isinstance(tensor, ReadOnlyTensor)]
            if isinstance(result, tuple | list) and type(result) in (tuple, list):
                return type(result)(_guarded(part, sources) for part in result)
            return _guarded(result, sources)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.clone()


def _guarded(result: Any, sources: list[ReadOnlyTensor]) -> Any:
    """A view of one of the sources stays read-only; any other tensor is an ordinary one."""
    if not isinstance(result, Tensor):
        return result
    is_view = not torch.compiler.is_compiling() and any(_shares_memory(result, source) for source in sources)
    return result.as_subclass(ReadOnlyTensor if is_view else Tensor)


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    start = one.untyped_storage().data_ptr()
    return start != 0 and start == other.untyped_storage().data_ptr()
