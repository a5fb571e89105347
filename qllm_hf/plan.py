"""The plan: for every linear weight of a model, quantized how, or kept in floating point why.

A plan is made from names and shapes alone, so a model on the meta device is enough, and it comes out the
same when a checkpoint is quantized and when it is read again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import QllmConfig
from .errors import ModelError, SchemeError, did_you_mean
from .families import (
    FP32_REASON,
    HEAD_NAMES,
    HEAD_REASON,
    LM_HEAD_NAMES,
    OVERRIDE_REASON,
    OWN_FORWARD_REASON,
    PLAIN_LINEAR_SUBCLASSES,
    ROUTER_REASON,
    ROUTERS,
    SHARED_REASON,
    UNKNOWN_EXPERTS_REASON,
    USER_REASON,
    family,
)
from .nn import PackedExperts, PackedLinear, expert_parameters
from .patterns import first_match, matches, numberless
from .scheme import PER_TENSOR, Spec
from .uniform import check_group_size

Kind = Literal["linear", "conv1d", "experts"]


@dataclass(frozen=True)
class Entry:
    """What happens to one linear weight.

    Attributes:
        name: the parameter's full name, such as `model.layers.0.mlp.down_proj.weight`.
        module: the module that holds it.
        shape: [O, I], or [E, O, I] for fused experts, whatever the orientation in memory.
        weight: how it is quantized, or None if it is kept.
        activation: how the input is quantized per token, or None.
        reason: why it is kept; empty if it is quantized.
        is_head: it is (tied to) the output head, which no coverage is claimed for.
        tied: a quantized head whose weight is that of the embedding too, which stays: it is packed beside it.
        input_scale: the layer multiplies its input by a stored vector first.
        input_order: the layer reads its input in a stored order.
    """

    name: str
    module: str
    kind: Kind
    shape: tuple[int, ...]
    weight: Spec | None
    activation: Spec | None
    reason: str = ""
    is_head: bool = False
    tied: bool = False
    input_scale: bool = False
    input_order: bool = False

    @property
    def elements(self) -> int:
        """Number of float weights that this stands for."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Plan:
    """The entries of a model, in its own order."""

    entries: tuple[Entry, ...]

    def quantized(self) -> list[Entry]:
        """The entries that are quantized."""
        return [entry for entry in self.entries if entry.weight is not None]

    def kept(self) -> list[Entry]:
        """The entries that stay in floating point."""
        return [entry for entry in self.entries if entry.weight is None]

    def modules(self) -> dict[str, list[Entry]]:
        """Quantized entries by the module that holds them."""
        grouped: dict[str, list[Entry]] = {}
        for entry in self.quantized():
            grouped.setdefault(entry.module, []).append(entry)
        return grouped

    def with_input_scales(self, modules: Collection[str]) -> Plan:
        """The same plan, in which exactly these modules multiply their input by a stored vector."""
        return Plan(tuple(replace(entry, input_scale=entry.module in modules) for entry in self.entries))

    def coverage(self) -> float:
        """Quantized share of the linear weights, by elements, 0 to 1; the output head does not count."""
        entries = [entry for entry in self.entries if not entry.is_head]
        total = sum(entry.elements for entry in entries)
        return sum(entry.elements for entry in entries if entry.weight is not None) / total if total else 0.0


def make_plan(model: nn.Module, config: QllmConfig, *, check_patterns: bool = True) -> Plan:
    """The plan for a float model (on any device, also meta).

    Raises:
        ConfigError: its bits were chosen by a sensitivity table, and that is one of another model.
        ModelError: a pattern of the config means no module, `quantize_head` and no head that can be quantized, or
            `paper_exact` and a group size that does not divide a row (the message names the module).
    """
    weights = list(_linear_weights(model))
    if check_patterns:
        if config.input_orders:
            raise ModelError(
                f"input_orders={config.input_orders!r} says how the rows of an imported checkpoint are stored, and a "
                "float model has no such order. Leave it out."
            )
        _check_patterns([module for _, module, _, _, _ in weights], config)
    heads, shared = _heads(model), shared_weights(model)
    plan = Plan(tuple(_decide(model, config, heads, shared, *weight) for weight in weights))
    if check_patterns:
        _check_head(model, config, plan)
        modules = Plan(tuple(entry for entry in plan.entries if not entry.is_head)).modules().items()
        config.check_budgeted({n: (sum(e.elements for e in es), packed_bits(model, es)) for n, es in modules})
    return plan


def packed_bits(model: nn.Module, entries: list[Entry], bits: int | None = None) -> int:
    """Bits that the weights of a module that is still in floating point take when packed.

    Args:
        bits: of each weight; by default what the plan says.
    """
    size = 0.0
    for entry in entries:
        assert entry.weight is not None
        spec, length = entry.weight if bits is None else replace(entry.weight, bits=bits), entry.shape[-1]
        scale_bits = 8 * model.get_parameter(entry.name).element_size()
        size += spec.row_bits(length, scale_bits) * (entry.elements // length)
        if spec.group_size == PER_TENSOR:
            matrices = entry.elements // (entry.shape[-2] * length)
            size += matrices * (scale_bits + (0 if spec.symmetric else 8))
    return round(size)


def patterns_of(modules: set[str], plan: Plan) -> list[str]:
    """The shortest list of patterns that means these modules of a plan and no others: one for all blocks if it can."""
    patterns: list[str] = []
    by_form: dict[str, set[str]] = {}
    for module in modules:
        by_form.setdefault(numberless(module), set()).add(module)
    for form, members in sorted(by_form.items()):
        meant = {entry.module for entry in plan.quantized() if first_match(entry.module, [form])}
        patterns += [form] if meant == members else sorted(members)
    return patterns


def _decide(
    model: nn.Module,
    config: QllmConfig,
    heads: _Heads,
    shared: set[str],
    name: str,
    module: str,
    kind: Kind,
    shape: tuple[int, ...],
    known: bool,
) -> Entry:
    is_head = module in heads.all
    override = first_match(module, config.overrides or {})
    scheme = config.scheme_for(config.overrides[override]) if override and config.overrides else config.scheme
    reason = _reason_to_keep(model, config, module, heads)
    if not reason and name in shared and not is_head:
        reason = SHARED_REASON
    if not reason and not known:
        reason = UNKNOWN_EXPERTS_REASON if kind == "experts" else OWN_FORWARD_REASON
    if not reason and scheme.weight is None:
        reason = OVERRIDE_REASON if override else "the scheme leaves weights at 16 bits"
    if reason or scheme.weight is None:
        return Entry(name, module, kind, shape, None, None, reason, is_head)
    try:
        check_group_size(shape[-1], scheme.weight)
    except SchemeError as error:
        raise ModelError(f"{name}: {error} Or keep it: modules_to_not_convert=[{module!r}].") from None
    input_order = kind != "experts" and first_match(module, config.input_orders or ()) is not None
    if is_head:  # its input stays in floating point, and no earlier layer's scale reaches it
        return Entry(
            name, module, kind, shape, scheme.weight, None, is_head=True, tied=name in shared, input_order=input_order
        )
    input_scale = kind != "experts" and first_match(module, config.input_scales or ()) is not None
    return Entry(
        name, module, kind, shape, scheme.weight, scheme.activation, input_scale=input_scale, input_order=input_order
    )


def _reason_to_keep(model: nn.Module, config: QllmConfig, module: str, heads: _Heads) -> str:
    if module in heads.all and not (config.quantize_head and module in heads.output):
        return HEAD_REASON
    if first_match(module, config.modules_to_not_convert or ()):
        return USER_REASON
    if module.rpartition(".")[2] in ROUTERS and not config.quantize_routers:
        return ROUTER_REASON
    for pattern, reason in family(getattr(getattr(model, "config", None), "model_type", None)).keep.items():
        if matches(module, pattern):
            return reason
    if first_match(module, getattr(model, "_keep_in_fp32_modules", None) or ()):
        return FP32_REASON
    return ""


def _linear_weights(model: nn.Module) -> Iterator[tuple[str, str, Kind, tuple[int, ...], bool]]:
    """(parameter name, module name, kind, shape [.., O, I], whether its form is known) of every linear weight."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedExperts):
            raise ModelError(
                f"{name} is already quantized. Quantize the float model, or call model.dequantize() first."
            )
        if isinstance(module, Conv1D):
            columns, rows = module.weight.shape
            yield f"{name}.weight", name, "conv1d", (rows, columns), True
        elif isinstance(module, nn.Linear):
            plain = type(module).forward is nn.Linear.forward or type(module).__name__ in PLAIN_LINEAR_SUBCLASSES
            yield f"{name}.weight", name, "linear", tuple(module.weight.shape), plain
        elif expert_parameters(module):
            for parameter, weight in expert_parameters(module).items():
                experts, rows, columns = weight.shape
                shape = (experts, columns, rows) if module.is_transposed else (experts, rows, columns)
                yield f"{name}.{parameter}", name, "experts", shape, True
        elif type(module).__name__.endswith("Experts"):
            for parameter, value in module._parameters.items():
                if value is not None and value.dim() == 3:
                    yield f"{name}.{parameter}", name, "experts", tuple(value.shape), False


class _Heads(NamedTuple):
    """Names of modules: those that are an output head or share its weight, and those that give a language model's
    logits."""

    all: frozenset[str]
    output: frozenset[str]


def _heads(model: nn.Module) -> _Heads:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = None if head is None else head._parameters.get("weight")
    every, output = set(), set()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if module is head or (head is None and last in LM_HEAD_NAMES):
            output.add(name)
        if name and weight is not None and module._parameters.get("weight") is weight:
            every.add(name)
        if last in HEAD_NAMES:
            every.add(name)
    return _Heads(frozenset(every | output), frozenset(output))


def shared_weights(model: nn.Module) -> set[str]:
    """Names of weights that several modules share (Zamba's blocks), by transformers' own table of ties."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return {*tied.keys(), *tied.values()}


def _check_head(model: nn.Module, config: QllmConfig, plan: Plan) -> None:
    """Raises ModelError if the config asks for other bits of the output head than it gets."""
    heads = [entry for entry in plan.entries if entry.is_head]
    if config.quantize_head:
        if not any(entry.weight is not None for entry in heads):
            found = "; ".join(f"{entry.module}: {entry.reason}" for entry in heads)
            why = f"it stays in floating point ({found})" if heads else "there is no linear layer that is its head"
            raise ModelError(f"quantize_head=True, but {type(model).__name__}'s output head cannot be: {why}.")
        return
    names = [entry.module for entry in heads]
    for pattern, scheme in (config.overrides or {}).items():
        meant = [entry.module for entry in plan.entries if matches(entry.module, pattern)]
        if meant and set(meant) <= set(names) and config.scheme_for(scheme).weight is not None:
            raise ModelError(
                f"overrides: {pattern!r} means the output head alone, which stays in floating point. To quantize it, "
                "give quantize_head=True as well (on the command line: --quantize-head)."
            )


def _check_patterns(modules: list[str], config: QllmConfig) -> None:
    for option in ("modules_to_not_convert", "overrides"):
        for pattern in getattr(config, option) or ():
            if not any(matches(module, pattern) for module in modules):
                last = {module.rpartition(".")[2] for module in modules}
                hint = did_you_mean(pattern.rpartition(".")[2], sorted(last))
                raise ModelError(
                    f"{option}: {pattern!r} means no linear layer of this model.{hint} "
                    f"Layers are called {', '.join(sorted(last))}; write '*.NAME' or a full path."
                )
