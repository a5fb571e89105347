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
    """A dequantized copy of a packed weight. Results computed from it are ordinary tensors."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name not in _ALLOWED_IN_PLACE
        if (in_place or name in _WRITES) and args and isinstance(args[0], ReadOnlyTensor):
            raise ModelError(
                f"this weight is packed and read-only ({name}): a change to the dequantized copy would be lost. "
                "Call model.dequantize() first, or change the float model and quantize it again."
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if isinstance(result, ReadOnlyTensor):
            # `.data` is a view that must stay protected; anything else is a result of its own
            return result if name == "__get__" else result.as_subclass(Tensor)
        return result.as_subclass(cls) if name == "__get__" and isinstance(result, Tensor) else result
