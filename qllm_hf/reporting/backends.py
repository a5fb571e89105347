"""Which implementation runs the packed layers of a model, and why not the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.parameters import SUFFIXES
from ..ops import Request, resolve
from .tensors import dtype_name, packed_modules
from .values import Backend


def model_backends(model: nn.Module) -> tuple[Backend, ...]:
    """One Backend for each distinct device, dtype and way of quantizing."""
    requests: dict[Request, None] = {}  # a set that keeps its order
    for module in packed_modules(model):
        for name, (spec, _) in module.weight_specs.items():
            scale = module._parameters[name + SUFFIXES["scale"]]
            assert scale is not None
            requests[Request(_device(module, scale), scale.dtype, spec, module.activation_spec)] = None
    return tuple(map(_backend, requests))


def _backend(request: Request) -> Backend:
    resolution = resolve(request)
    size = {-1: "per row", 0: "per matrix"}.get(request.weight.group_size, f"in groups of {request.weight.group_size}")
    return Backend(
        device=request.device,
        dtype=dtype_name(request.dtype),
        weight=f"{request.weight.bits} bits {size}" + (" symmetric" if request.weight.symmetric else ""),
        activation="float" if request.activation is None else f"{request.activation.bits} bits",
        implementation=resolution.chosen.name,
        summary=resolution.chosen.summary,
        refused=resolution.refused,
    )


def _device(module: nn.Module, tensor: Tensor) -> str:
    """Where a module runs. Offloaded weights are on the meta device until then, and plans have only that."""
    if tensor.device.type != "meta":
        return tensor.device.type
    offloaded_to = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if offloaded_to is not None:
        return torch.device(offloaded_to).type
    return "cuda" if torch.cuda.is_available() else "cpu"
