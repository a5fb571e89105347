"""How compressed-tensors says what packed weights are: a `Group` for each kind of layer, and `config_groups`.

What it cannot say is refused here, with the nearest that it can: it has no short last group, and no vector that a layer
multiplies its input by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ModelError
from ..plan import Entry
from ..scheme import PER_ROW, Spec
from .stored import StoredWeight

PACK_QUANTIZED: Literal["pack-quantized"] = "pack-quantized"
INT_QUANTIZED: Literal["int-quantized"] = "int-quantized"
LINEAR = "Linear"  # a target that means every layer of this class, and in vLLM all its kinds of linear layers
EXPERTS = "re:.*experts.*"
"""A target that means the experts, by which transformers recognizes the group of theirs."""


@dataclass(frozen=True)
class Group:
    """How the weights and inputs of some layers are quantized, in the words of compressed-tensors.

    Attributes:
        group_size: weights along in_features that share a scale; None: one scale for each output channel.
        a_bits: bits of the input, per token and dynamically; None: it stays in floating point.
        a_symmetric: whether the input's grid has its zero in the middle.
    """

    bits: int
    symmetric: bool
    group_size: int | None
    a_bits: int | None = None
    a_symmetric: bool = False

    @property
    def format(self) -> str:
        """`int-quantized` (a byte for each weight) where kernels for 8-bit integers can run, or else packed bits."""
        per_channel = self.group_size is None
        return (
            INT_QUANTIZED if self.a_bits == 8 and self.bits == 8 and self.symmetric and per_channel else PACK_QUANTIZED
        )

    @property
    def spec(self) -> Spec:
        """The same for the arithmetic here: how a weight's numbers are grouped."""
        return Spec(self.bits, PER_ROW if self.group_size is None else self.group_size, self.symmetric)

    def __str__(self) -> str:
        grouped = "per channel" if self.group_size is None else f"g{self.group_size}"
        kind = "symmetric" if self.symmetric else "asymmetric"
        a_kind = "symmetric" if self.a_symmetric else "asymmetric"
        inputs = f", inputs {self.a_bits} bits {a_kind} per token" if self.a_bits else ""
        return f"{self.bits} bits {kind} {grouped}{inputs}"


def group_of(entry: Entry) -> Group:
    """What compressed-tensors calls the quantization of one weight.

    One group, be it short or the whole matrix, is the same as a scale for each row.

    Raises:
        ModelError: it has no word for it. The message says what to quantize instead.
    """
    spec, length = entry.weight, entry.shape[-1]
    assert spec is not None
    if entry.input_scale:
        raise ModelError(
            f"{entry.module} multiplies its input by a stored vector, as method awq writes it behind GELU, and "
            f"compressed-tensors cannot say that. Quantize with --method gptq, or keep the layer: --keep "
            f"{entry.module!r}; or export --format float, which multiplies the vector into the weight."
        )
    if entry.input_order:
        raise ModelError(
            f"{entry.module} reads its input in a stored order (act order), which is not written as "
            "compressed-tensors. Use the checkpoint that it was imported from, or export --format float, which puts "
            "the columns back."
        )
    grouped = 0 < spec.group_size < length
    if grouped and length % spec.group_size:
        raise ModelError(
            f"{entry.module}: groups of {spec.group_size} do not divide its {length} inputs, and compressed-tensors "
            f"has no short last group. Quantize again with {_dividing(spec.group_size, length)} or per channel "
            f"(--w-group-size -1), or keep the layer: --keep {entry.module!r}."
        )
    a = entry.activation
    return Group(
        spec.bits,
        spec.symmetric,
        spec.group_size if grouped else None,
        None if a is None else a.bits,
        a is not None and a.symmetric,
    )


def _dividing(group_size: int, length: int) -> str:
    below = max(size for size in range(1, group_size + 1) if length % size == 0)
    above = min(size for size in range(group_size + 1, length + 1) if length % size == 0)
    return f"--w-group-size {below} or {above}"


def quantization_config(weights: Iterable[tuple[StoredWeight, Group]], kept: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json.

    The group with most layers is that of all linear layers, and the others name theirs, so that config.json stays
    readable.

    Args:
        kept: names of linear layers that stay in floating point.
    """
    layers: dict[Group, list[str]] = {}
    heads: dict[Group, list[str]] = {}
    dense: set[Group] = set()
    for weight, group in weights:
        modules = list(weight.layers)
        layers.setdefault(group, []).extend(modules)
        if weight.entry.is_head:
            heads.setdefault(group, []).extend(modules)
        elif weight.entry.kind != "experts":
            dense.add(group)
    order = sorted(layers, key=lambda group: -len(layers[group]))
    only_experts = [group for group in order if group not in dense and group not in heads]
    targets = {group: layers[group] for group in order}
    if len(only_experts) == 1 and dense:  # transformers finds the group of experts by such a target
        targets[only_experts[0]] = [EXPERTS]
    largest = next((group for group in order if group in dense), order[0])
    # a head is named as well: in vLLM it is no linear layer
    targets[largest] = [LINEAR, *heads.get(largest, ())]
    formats = {group.format for group in layers}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{place}": _as_json(group, names) for place, (group, names) in enumerate(targets.items())
        },
        "ignore": list(kept),
        "kv_cache_scheme": None,
    }


def _as_json(group: Group, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        # inside the group too: without it, compressed-tensors takes int-quantized wherever inputs are quantized
        "format": group.format,
        "weights": {
            "num_bits": group.bits,
            "type": "int",
            "symmetric": group.symmetric,
            "strategy": "channel" if group.group_size is None else "group",
            "group_size": group.group_size,
            "dynamic": False,
        },
        "input_activations": None
        if group.a_bits is None
        else {
            "num_bits": group.a_bits,
            "type": "int",
            "symmetric": group.a_symmetric,
            "strategy": "token",
            "group_size": None,
            "dynamic": True,
        },
        "output_activations": None,
    }
