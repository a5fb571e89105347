"""Exchange the modules that a plan names for packed ones, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .errors import ModelError, QllmWarning
from .families import SAME_INPUT
from .finite import not_finite
from .nn import PackedExperts, PackedLinear, Siblings, expert_parameters, pack_experts_
from .packed import PackedTensor
from .plan import Entry, Plan
from .scheme import Spec
from .uniform import SMALLEST_RANGE, affine_params

Encode = Callable[[Entry, Tensor], PackedTensor]
"""Chooses the codes of a float weight [..., O, I]: the packed tensor, scales in the dtype they are stored in."""


def replace_modules_(model: nn.Module, plan: Plan, *, placeholders: bool) -> None:
    """Put empty packed modules, on the meta device, in the place of those that the plan quantizes.

    `placeholders` keeps float weights on the meta device beside them, for tensors that arrive from a float checkpoint.
    """
    untie_(model, plan)
    for name, entries in plan.modules().items():
        module = model.get_submodule(name)
        if entries[0].kind == "experts":
            spec, activation = _specs(entries[0])
            pack_experts_(module, spec, activation, device="meta", placeholder=placeholders)
        else:
            packed = _packed_linear(module, entries[0], device="meta")
            if placeholders:
                packed.add_placeholder(module.weight.dtype)  # type: ignore[arg-type]
            model.set_submodule(name, packed)
    _introduce_siblings_(model)


def round_to_nearest(entry: Entry, matrix: Tensor) -> PackedTensor:
    """The packed form of a float weight [..., O, I], each element on the nearest point of its group's grid."""
    assert entry.weight is not None
    return PackedTensor.encode_weight(matrix, entry.weight)


def pack_modules_(model: nn.Module, plan: Plan, encode: Encode = round_to_nearest) -> None:
    """Quantize the modules that the plan names from the float weights they hold, one after another, in place.

    `encode` chooses the codes of a weight [..., O, I].
    """
    untie_(model, plan)
    for name, entries in plan.modules().items():
        module = model.get_submodule(name)
        if entries[0].kind == "experts":
            spec, activation = _specs(entries[0])
            weights = dict(expert_parameters(module))
            device = next(iter(weights.values())).device
            pack_experts_(module, spec, activation, device="meta", placeholder=False)
            assert isinstance(module, PackedExperts)
            for entry in entries:
                parameter = entry.name.rpartition(".")[2]
                weight = weights.pop(parameter).data
                matrix = weight.transpose(-1, -2).contiguous() if module.is_transposed else weight
                module.assign_packed(parameter, checked(encode(entry, matrix), matrix, entry.name))
            module.to(device)
        else:
            (entry,) = entries
            packed = _packed_linear(module, entry, device="meta")
            weight = module.weight.data  # type: ignore[assignment]
            matrix = weight.t().contiguous() if packed.transposed else weight
            packed.assign_packed("weight", checked(encode(entry, matrix), matrix, entry.name))
            packed.bias = module.bias  # type: ignore[assignment]
            packed.train(module.training)
            model.set_submodule(name, packed)
    _introduce_siblings_(model)


def _introduce_siblings_(model: nn.Module) -> None:
    """Let packed layers that read the same input compute together."""
    for module in model.modules():
        for names in SAME_INPUT:
            layers = [layer for name in names if isinstance(layer := module._modules.get(name), PackedLinear)]
            if len(layers) == len(names):
                siblings = Siblings(layers)
                for layer in layers:
                    layer.siblings = siblings


def unpack_modules_(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put ordinary float modules with the dequantized weights in the place of packed ones, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(name, _float_linear(module, dtype))
        elif isinstance(module, PackedExperts):
            weights = {parameter: module.unpack(parameter, dtype) for parameter in module.weight_specs}
            for parameter in module.packed_names():
                del module._parameters[parameter]
            module.__class__ = type(module).__bases__[1]  # the class that was packed
            for parameter, weight in weights.items():
                module.register_parameter(parameter, nn.Parameter(weight, requires_grad=False))


def untie_(model: nn.Module, plan: Plan) -> None:
    """Make transformers forget that an output head which the plan quantizes is tied to the embedding.

    Only its tables of ties change, those of this instance. `config.tie_word_embeddings` goes on saying what the float
    model is like: some architectures compute otherwise without it, and what a model took before depends on it.
    """
    heads = [entry.name for entry in plan.quantized() if entry.is_head]
    for prefix, module in model.named_modules() if heads else ():
        if isinstance(module, PreTrainedModel):
            start = f"{prefix}." if prefix else ""
            names = {name.removeprefix(start) for name in heads if name.startswith(start)}
            ties: dict[str, str] = module.get_expanded_tied_weights_keys(all_submodels=False)
            if names & {*ties.keys(), *ties.values()}:
                module._tied_weights_keys = _ties_without(ties, names)
            state: Any = module
            state.all_tied_weights_keys = _ties_without(module.all_tied_weights_keys, names)


def _ties_without(ties: dict[str, str], gone: set[str]) -> dict[str, str]:
    """{target: source} without these names; of the targets of a source that is gone, the first takes its place."""
    left: dict[str, str] = {}
    heirs: dict[str, str] = {}
    for target, source in ties.items():
        if target not in gone:
            source = heirs.setdefault(source, target) if source in gone else source
            if source != target:
                left[target] = source
    return left


def checked(packed: PackedTensor, matrix: Tensor, name: str) -> PackedTensor:
    """The packed tensor itself, made of a float weight [..., O, I]; with a warning if nothing of that is left.

    Raises:
        ModelError: the float weight holds NaN or infinite values, or more than its dtype can express.
    """
    finite = torch.isfinite(packed.scale)
    if not bool(finite.all()):
        *row, group = (~finite).nonzero()[0].tolist()
        wrong = not_finite(matrix) or f"group {group} of row {row} is wider than {matrix.dtype} can express"
        raise ModelError(
            f"{name}: {wrong}. No integer can stand for it. Check the checkpoint, or load it with dtype=torch.float32."
        )
    if _vanishes(packed, matrix):
        warnings.warn(
            f"all values of {name} are within {SMALLEST_RANGE} of each other, the smallest range that the formula "
            f"knows, and {float((packed.decode() == 0).float().mean()):.0%} of them became 0. Keep it in floating "
            f'point: modules_to_not_convert=["{name.rpartition(".")[0]}"].',
            QllmWarning,
            stacklevel=2,
        )
    return packed


def _vanishes(packed: PackedTensor, matrix: Tensor) -> bool:
    """Whether a weight is not zero, and all its groups are narrower than the smallest range of the formula."""
    if not packed.scale.numel() or packed.scale.is_meta:
        return False
    smallest, _ = affine_params(packed.scale.new_zeros(1, 1), packed.spec)
    return bool((packed.scale <= smallest).all()) and bool(matrix.any())


def _specs(entry: Entry) -> tuple[Spec, Spec | None]:
    assert entry.weight is not None
    return entry.weight, entry.activation


def _packed_linear(module: nn.Module, entry: Entry, device: str) -> PackedLinear:
    rows, columns = entry.shape
    spec, activation = _specs(entry)
    weight: Tensor = module.weight  # type: ignore[assignment]
    return PackedLinear(
        columns,
        rows,
        bias=module.bias is not None,
        spec=spec,
        activation=activation,
        dtype=weight.dtype,
        device=device,
        transposed=isinstance(module, Conv1D),
        input_scale=entry.input_scale,
        input_order=entry.input_order,
    )


def _float_linear(packed: PackedLinear, dtype: torch.dtype | None) -> nn.Module:
    matrix = packed.float_matrix(dtype)
    with torch.device("meta"):
        module: nn.Module
        if packed.transposed:
            module, matrix = Conv1D(packed.out_features, packed.in_features), matrix.t().contiguous()
        else:
            module = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
    module.weight = nn.Parameter(matrix, requires_grad=False)
    if packed.bias is not None:
        module.bias = nn.Parameter(packed.bias.data.to(matrix.dtype), requires_grad=False)
    return module.train(packed.training)
