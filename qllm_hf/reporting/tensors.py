"""The tensors of a model, each counted once: those of packed weights, and all others with the reason why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from ..nn import PackedExperts, PackedLinear, PackedModule
from ..nn.parameters import SUFFIXES, local
from ..patterns import numberless
from ..plan import Plan
from ..scheme import FLOAT_BITS, Spec
from .values import KeptGroup, QuantizedGroup


class PackedWeight(NamedTuple):
    """One packed weight.

    Attributes:
        how: kind, spec of the weight, bits of the activations.
        elements: number of float weights.
        bytes_before, bytes_after: in the dtype of its scales (0 if `beside`), and as it is stored.
        expected_bits: what its format predicts for all of it.
        is_head: it is the output head.
        beside: its float weight is the embedding's, which stays and is counted there.
    """

    how: tuple[str, Spec, int]
    elements: int
    bytes_before: int
    bytes_after: int
    expected_bits: float
    is_head: bool
    beside: bool


def packed_weights(model: nn.Module, plan: Plan) -> list[PackedWeight]:
    """All packed weights of a model, measured; one that several modules share is counted once."""
    heads = {entry.module: entry for entry in plan.quantized() if entry.is_head}
    found: dict[int, PackedWeight] = {}
    for prefix, module in model.named_modules():
        if not isinstance(module, PackedModule):
            continue
        head = heads.get(prefix)
        beside = head is not None and head.tied
        activation_bits = module.activation_spec.bits if module.activation_spec else FLOAT_BITS
        for name, (spec, length) in module.weight_specs.items():
            parts = {part: module._parameters.get(name + suffix) for part, suffix in SUFFIXES.items()}
            words, scale = parts["words"], parts["scale"]
            assert words is not None and scale is not None
            order = getattr(module, "input_order", None)
            order_bytes = 0 if order is None else _nbytes(order)
            elements = words.shape[:-1].numel() * length
            found[id(words)] = PackedWeight(
                how=(_kind(module) if head is None else "head", spec, activation_bits),
                elements=elements,
                bytes_before=0 if beside else elements * scale.element_size(),
                bytes_after=sum(_nbytes(tensor) for tensor in parts.values() if tensor is not None) + order_bytes,
                expected_bits=elements * spec.bits_per_element(length, 8 * scale.element_size()) + 8 * order_bytes,
                is_head=head is not None,
                beside=beside,
            )
    return list(found.values())


def quantized_groups(weights: list[PackedWeight]) -> tuple[QuantizedGroup, ...]:
    """Packed weights that are quantized alike, together."""
    groups: dict[tuple[str, Spec, int], list[PackedWeight]] = {}
    for weight in weights:
        groups.setdefault(weight.how, []).append(weight)
    return tuple(
        QuantizedGroup(
            kind=kind,
            bits=spec.bits,
            group_size=spec.group_size,
            symmetric=spec.symmetric,
            activation_bits=activation,
            weights=len(members),
            elements=sum(weight.elements for weight in members),
            bytes_before=sum(weight.bytes_before for weight in members),
            bytes_after=sum(weight.bytes_after for weight in members),
        )
        for (kind, spec, activation), members in groups.items()
    )


def kept_groups(model: nn.Module, plan: Plan) -> tuple[KeptGroup, ...]:
    """Every tensor that is not part of a packed weight, grouped by pattern and reason, largest group first."""
    reasons = {entry.name: (numberless(entry.module), entry.reason) for entry in plan.kept()}
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for tensor, module, names in _float_tensors(model):
        # a tied weight has several names; one that the plan knows says why it stays
        known = next((reasons[name] for name in names if name in reasons), None)
        groups.setdefault(known or _unplanned(module, names[0]), []).append(tensor)
    kept = [
        KeptGroup(pattern, len(tensors), sum(t.numel() for t in tensors), sum(map(_nbytes, tensors)), reason)
        for (pattern, reason), tensors in groups.items()
    ]
    return tuple(sorted(kept, key=lambda group: -group.bytes))


def kept_linear_bytes(model: nn.Module, plan: Plan) -> int:
    """Bytes of linear weights that stay in floating point, the output head not counted."""
    linear = {entry.name for entry in plan.kept() if not entry.is_head}
    return sum(_nbytes(tensor) for tensor, _, names in _float_tensors(model) if linear.intersection(names))


def parameter_bytes(model: nn.Module, *, here: bool = False) -> int:
    """Bytes of all parameters and saved buffers, packed or not; `here`: those that this process holds of a model that
    is cut over several."""
    tensors: dict[int, Tensor] = {}
    for module in model.modules():
        saved = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        tensors |= {id(t): t for t in {**module._parameters, **saved}.values() if t is not None}
    return sum(_nbytes(local(tensor) if here else tensor) for tensor in tensors.values())


def packed_modules(model: nn.Module) -> Iterator[PackedModule]:
    """The modules with packed weights."""
    return (module for module in model.modules() if isinstance(module, PackedModule))


def dtype_name(dtype: object) -> str:
    """`float32` of torch.float32."""
    return str(dtype).removeprefix("torch.")


def _float_tensors(model: nn.Module) -> list[tuple[Tensor, nn.Module, list[str]]]:
    """Each parameter and saved buffer outside of packed weights: the tensor, a module that holds it, all its names."""
    found: dict[int, tuple[Tensor, nn.Module, list[str]]] = {}
    for prefix, module in model.named_modules():
        packed = set(module.packed_names()) if isinstance(module, PackedModule) else set()
        saved = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **saved}.items():
            if tensor is not None and name not in packed:
                entry = found.setdefault(id(tensor), (tensor, module, []))
                entry[2].append(f"{prefix}.{name}" if prefix else name)
    return list(found.values())


def _unplanned(module: nn.Module, name: str) -> tuple[str, str]:
    """(pattern, reason) of a tensor that is no linear weight."""
    owner, _, last = name.rpartition(".")
    if isinstance(module, nn.Embedding):
        return numberless(owner), "embedding: rows are looked up, not multiplied"
    if isinstance(module, nn.Linear | PackedModule) or last == "bias":
        return "biases", "a bias is added, not multiplied"
    return f"of {type(module).__name__}", "no linear weight"


def _kind(module: PackedModule) -> str:
    if isinstance(module, PackedExperts):
        return "experts"
    return "conv1d" if isinstance(module, PackedLinear) and module.transposed else "linear"


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
