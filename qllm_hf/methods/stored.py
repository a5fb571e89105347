"""Applies the result of an earlier AWQ or SmoothQuant search, in the form that the study's repository reads.

    {"scale": [(name of what comes before, (names of linear layers), scales [I]), ...],
     "clip":  [(name of a linear layer, largest magnitudes [O, G, 1]), ...]}

The file is a pickle of lists and tensors. It is read with torch's restricted unpickler, which builds nothing else.
What "before" may be, and which rows of it a scale divides, is as in the study's `apply_rep.py`: a norm, a linear layer
(its last rows), or an activation function, whose layer then divides its own input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config import QllmConfig
from ..errors import CheckpointError
from ..packed import PackedTensor
from ..plan import Entry, Plan, make_plan, patterns_of
from ..surgery import pack_modules_
from .rounding import encode
from .scales import Pair, apply_scale, linear_matrix


@dataclass(frozen=True)
class Stored:
    """A result file that was checked against a model.

    Attributes:
        scales: (name of the module before, names of the linear layers, scale [I]).
        limits: name of a linear layer -> [O, G].
    """

    scales: tuple[tuple[str, tuple[str, ...], Tensor], ...]
    limits: Mapping[str, Tensor]


def read_stored(path: Path) -> Stored:
    """What a result file holds.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r} with an AWQ result.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file of another kind the unpickler says whatever it runs into
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} is no AWQ result that can be read safely ({first}). It must hold lists, strings and tensors only."
        ) from None
    if not isinstance(content, dict) or not {"scale", "clip"} <= content.keys():
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} is no AWQ result: it must hold 'scale' and 'clip' (found: {found}).")
    try:
        scales = tuple(
            (str(before), tuple(map(str, layers)), scale.float()) for before, layers, scale in content["scale"]
        )
        limits = {str(layer): limit.float() for layer, limit in content["clip"]}
    except (TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{path} is no AWQ result: 'scale' must list (module, (layers ..), tensor), 'clip' (layer, tensor)."
        ) from None
    return Stored(scales, limits)


def pack_stored_(model: PreTrainedModel, config: QllmConfig, path: Path) -> Plan:
    """Move the stored scales of a float model, clip its weights, and pack it, in place. Returns the plan.

    Raises:
        CheckpointError: the file is no result, or that of another model: the message names the first layer.
    """
    stored, plan = read_stored(path), make_plan(model, config)
    entries = {entry.module: entry for entry in plan.quantized() if entry.kind != "experts"}
    _check(model, stored, entries, path)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    factors: dict[str, Tensor] = {}
    for before, layers, scale in stored.scales:
        modules = [model.get_submodule(layer) for layer in layers]
        for module in [*modules, model.get_submodule(before)]:
            module.float()
        pair = _pair(model, before, layers, scale)
        if pair.kind == "input" and not set(layers) <= entries.keys():
            continue  # a layer that stays in floating point has nothing to multiply its input by, and no need to
        moved = apply_scale(model, pair, scale, dtypes.get(f"{before}.weight"))
        if pair.kind == "input":
            factors |= dict.fromkeys(layers, 1 / moved)

    def encode_clipped(entry: Entry, matrix: Tensor) -> PackedTensor:
        assert entry.weight is not None
        dtype = dtypes[entry.name]
        if matrix.dim() == 3:
            return PackedTensor.encode(matrix, entry.weight, dtype)
        limits = stored.limits.get(entry.module)
        return encode(matrix.float(), None, entry.weight, dtype, limits=None if limits is None else limits.squeeze(-1))

    part = plan.with_input_scales(factors)
    pack_modules_(model, part, encode_clipped)
    for name, factor in factors.items():
        packed: Any = model.get_submodule(name)
        packed.assign_input_scale(factor.to(dtypes[f"{name}.weight"]))
    for name, parameter in model.named_parameters():
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
    config.input_scales = patterns_of(set(factors), plan) or None
    config.method_options = {**(config.method_options or {}), "stored": path.name}
    return part


def _pair(model: nn.Module, before: str, layers: tuple[str, ...], scale: Tensor) -> Pair:
    """The way that a stored scale goes."""
    module, consumers = model.get_submodule(before), tuple(f"{layer}.weight" for layer in layers)
    straight = torch.arange(len(scale))
    if isinstance(module, nn.Linear | Conv1D):
        rows = linear_matrix(module).shape[0]
        return Pair("linear", f"{before}.weight", consumers, rows - len(scale) + straight)
    if module._parameters.get("weight") is not None:
        return Pair("norm", before, consumers, straight)
    return Pair("input", "", consumers, straight)


def _check(model: nn.Module, stored: Stored, entries: Mapping[str, Entry], path: Path) -> None:
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is the result of another model: {what}. Search again for this one: --method awq --calibration ..."
        )

    modules = dict(model.named_modules())
    for before, layers, scale in stored.scales:
        for name in (before, *layers):
            if name not in modules:
                raise wrong(f"there is no {name}")
        for layer in layers:
            if not isinstance(modules[layer], nn.Linear | Conv1D):
                raise wrong(f"{layer} is no linear layer")
            columns = linear_matrix(modules[layer]).shape[1]
            if scale.shape != (columns,):
                raise wrong(f"{layer} reads {columns} channels, the file has scales {tuple(scale.shape)}")
        if isinstance(modules[before], nn.Linear | Conv1D) and len(linear_matrix(modules[before])) < len(scale):
            rows = len(linear_matrix(modules[before]))
            raise wrong(f"{before} has {rows} rows, the file has scales {tuple(scale.shape)}")
        norm = modules[before]._parameters.get("weight")
        if norm is not None and norm.dim() == 1 and len(norm) != len(scale):
            raise wrong(f"{before} has {len(norm)} channels, the file has scales {tuple(scale.shape)}")
        if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            raise wrong(f"the scales of {before} are not all positive numbers")
    for layer, limits in stored.limits.items():
        if layer not in entries:
            raise wrong(f"{layer} is no quantized layer")
        spec, (rows, columns) = entries[layer].weight, entries[layer].shape
        assert spec is not None
        groups = -(-columns // spec.group_size) if spec.group_size > 0 else 1
        if tuple(limits.shape[:2]) != (rows, groups):
            raise wrong(
                f"{layer} has {rows} rows in {groups} groups of {spec.group_size}, the file has limits "
                f"{tuple(limits.shape)}. Was it made with another w_group_size?"
            )
