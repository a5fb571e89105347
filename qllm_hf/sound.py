"""Values that no quantized weight can have: a scale that is no number, a zero point outside of its codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .nn import PackedModule
from .nn.parameters import SUFFIXES, local


def check_values(model: nn.Module) -> None:
    """Raises CheckpointError if a packed weight that was loaded holds such a value; what is on disk is not looked at.

    Scales of 0, below 0 or denormal are taken: other programs write them, and the formula of the format has a value.
    """
    for name, module in model.named_modules():
        if not isinstance(module, PackedModule):
            continue
        for weight, (spec, _) in module.weight_specs.items():
            scale, zero_point = (_here(module, weight + SUFFIXES[part]) for part in ("scale", "zero_point"))
            check_parts(f"{name}.{weight}", spec.bits, scale, zero_point)
        vector = _here(module, "input_scale")
        if vector is not None and not bool(torch.isfinite(vector).all()):
            raise CheckpointError(_damaged(f"{name}.input_scale", "infinite numbers or NaN"))


def check_parts(name: str, bits: int, scale: Tensor | None, zero_point: Tensor | None) -> None:
    """The same for one weight, or some rows of it."""
    if scale is not None and not bool(torch.isfinite(scale).all()):
        raise CheckpointError(_damaged(name + SUFFIXES["scale"], "infinite numbers or NaN"))
    if zero_point is not None and zero_point.numel() and int(zero_point.max()) >= 2**bits:
        raise CheckpointError(
            _damaged(
                name + SUFFIXES["zero_point"],
                f"{int(zero_point.max())}, where {bits} bits reach to {2**bits - 1}",
            )
        )


def _here(module: nn.Module, name: str) -> Tensor | None:
    found = local(module._parameters.get(name))
    return None if found is None or found.is_meta else found


def _damaged(tensor: str, values: str) -> str:
    return f"{tensor} in the checkpoint holds {values}. The files are damaged: copy them again."
