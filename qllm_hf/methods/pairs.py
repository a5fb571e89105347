"""Where a scale can be moved: out of a layer's input channels, into what made them.

    norm -> linears        the norm's weight takes 1/s, the linears' columns take s
    linear -> linear       v_proj -> o_proj, up_proj -> down_proj, fc1 -> fc2 behind ReLU: rows take 1/s
    input -> linear        nothing before can take it (behind GELU): the layer multiplies its own input by 1/s

Pairs are found by running a block, not from lists of families. What a layer reads is compared with what others put
out, a few ways in which the rows of one layer can belong to the columns of another are tried, and a pair counts only
if the block's output stays the same when random scales are moved along it, while the scaled columns alone do change
it. So a norm whose output also goes elsewhere, a wrong half of a fused weight or a nonlinearity in between can
never become a pair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..nn import expert_parameters
from .scales import Pair, applied, fused_name, linear_matrix

LARGEST_RESIDUE = 1e-3
"""Change of the output that is rounding, as part of the change that scaling the columns alone makes."""


@dataclass
class _Trace:
    """What the modules of a block read and put out in one pass, rows [.., channels], in the order of their calls."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Heads:
    """How the rows of attention weights may be arranged: number of key-value heads, query heads, and their size."""

    kv: int
    query: int
    value_dim: int


def find_pairs(
    block: nn.Module,
    run: Callable[[], Tensor],
    heads: Heads | None,
    shared: frozenset[str] = frozenset(),
    quantized: frozenset[str] | None = None,
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a decoder block in float32, and {weight: why no scale can be moved out of its input}.

    Args:
        run: runs the block on a few tokens and returns its output.
        shared: names of modules whose weights other blocks use too; they are left alone.
        quantized: names of the weights that will be quantized; pairs that help none of them are left out.
    """
    consumers = _consumers(block)
    trace = _record(block, run, [name for name, _ in block.named_modules() if name])
    base = run()
    wanted = quantized if quantized is not None else frozenset(consumers)
    pairs: list[Pair] = []
    skipped: dict[str, str] = {}
    done: set[str] = set()
    for name in consumers:
        module = consumers[name].module
        if name in done or module not in trace.inputs:
            continue
        group = [
            other
            for other in consumers
            if consumers[other].module in trace.inputs
            and other not in done
            and consumers[other].reads == consumers[name].reads
            and _same(trace.inputs[consumers[other].module], trace.inputs[module])
        ]
        if consumers[name].reads == "inner":
            group = [name]
        done |= set(group)
        if not wanted & set(group):
            continue
        if any(consumers[other].module in shared for other in group):
            skipped |= dict.fromkeys(group, "its weight is shared by several blocks")
            continue
        pair = next(
            (
                candidate
                for candidate in _candidates(block, trace, consumers, group, heads, shared)
                if _holds(block, run, base, candidate)
            ),
            None,
        )
        if pair is not None:
            pairs.append(pair)
        else:
            skipped |= dict.fromkeys(group, "nothing before it can take a scale")
    return pairs, skipped


@dataclass(frozen=True)
class _Consumer:
    """A weight with input channels: of a linear layer, of anything like one (a router), or of experts.

    `reads` is "outer" for what the module gets and "inner" for the second product of experts.
    """

    module: str
    reads: Literal["outer", "inner"]
    columns: int
    kind: Literal["linear", "experts", "other"]


def _consumers(block: nn.Module) -> dict[str, _Consumer]:
    found: dict[str, _Consumer] = {}
    for name, module in block.named_modules():
        experts = expert_parameters(module)
        if experts:
            for parameter, weight in experts.items():
                inner = parameter == "down_proj"
                columns = weight.shape[1] if module.is_transposed else weight.shape[2]
                found[f"{name}.{parameter}"] = _Consumer(name, "inner" if inner else "outer", int(columns), "experts")
            continue
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        is_linear = isinstance(module, nn.Linear | Conv1D)
        columns = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
        found[f"{name}.weight"] = _Consumer(name, "outer", columns, "linear" if is_linear else "other")
    return found


def _candidates(
    block: nn.Module,
    trace: _Trace,
    consumers: Mapping[str, _Consumer],
    group: list[str],
    heads: Heads | None,
    shared: frozenset[str],
) -> Iterator[Pair]:
    """Pairs that may hold, the ones that cost nothing at run time first."""
    first = consumers[group[0]]
    columns = first.columns
    straight = torch.arange(columns)
    if first.reads == "inner":
        producer = fused_name(block.get_submodule(first.module))
        rows = expert_parameters(block.get_submodule(first.module))[producer].shape
        count = int(rows[2] if block.get_submodule(first.module).is_transposed else rows[1])
        for index in (count - columns + straight, 2 * straight + 1, straight):  # [gate; up], interleaved, up alone
            if int(index.max()) < count:
                yield Pair("experts", f"{first.module}.{producer}", tuple(group), index)
        return
    read = trace.inputs[first.module]
    for name, output in trace.outputs.items():
        module = block.get_submodule(name)
        weight = module._parameters.get("weight")
        is_norm = weight is not None and weight.dim() == 1 and weight.shape[0] == columns
        if is_norm and name not in shared and _same(output, read):
            yield Pair("norm", name, tuple(group), straight)
    earlier = list(trace.inputs)
    for name in reversed(earlier[: earlier.index(first.module)]):
        producer_name = f"{name}.weight"
        if consumers.get(producer_name) is None or consumers[producer_name].kind != "linear" or name in shared:
            continue
        made = linear_matrix(block.get_submodule(name)).shape[0]
        for index in _row_maps(made, columns, heads):
            yield Pair("linear", producer_name, tuple(group), index)
    module = block.get_submodule(first.module)
    if len(group) == 1 and first.kind == "linear" and isinstance(module, nn.Linear | Conv1D):
        yield Pair("input", "", tuple(group), straight)


def _row_maps(rows: int, columns: int, heads: Heads | None) -> Iterator[Tensor]:
    """Ways in which `columns` input channels may come from the `rows` output channels of an earlier layer.

    Each is int64 [columns]: the row that makes a column.
    """
    straight = torch.arange(columns)
    if rows >= columns:
        yield rows - columns + straight  # all, or the last ones of a fused weight ([gate; up], [q; k; v])
    if heads is None:
        return
    size, kv, query = heads.value_dim, heads.kv, heads.query
    if columns != query * size or query % kv:
        return
    head, within = straight // size, straight % size
    owner = head // (query // kv)  # the key-value head that a query head reads
    maps = []
    if rows >= kv * size:
        maps.append(rows - kv * size + owner * size + within)  # v_proj, or [q; k; v] with fewer v heads
    for groups, index in ((kv, owner), (query, head)):
        if rows % groups == 0 and rows // groups >= size:
            each = rows // groups
            maps.append(index * each + each - size + within)  # fused group by group: [q .. q k v] of each
    seen = [rows - columns + straight] if rows >= columns else []
    for candidate in maps:
        if not any(torch.equal(candidate, other) for other in seen):
            seen.append(candidate)
            yield candidate


def _holds(block: nn.Module, run: Callable[[], Tensor], base: Tensor, pair: Pair) -> bool:
    """Whether scales can be moved along a pair without changing what the block computes."""
    generator = torch.Generator().manual_seed(0)
    shape = pair.scale_shape(block)
    scale = torch.exp(torch.rand(shape, generator=generator) * 2.0 - 1.0).to(base.device)
    with applied(block, pair, scale, consumers_only=True):
        effect = _largest(run() - base)
    if effect == 0:  # these few tokens say nothing about it
        return False
    with applied(block, pair, scale):
        residue = _largest(run() - base)
    return residue <= LARGEST_RESIDUE * effect


def _largest(x: Tensor) -> float:
    value = float(x.abs().max())
    return value if value == value else float("inf")


def _record(block: nn.Module, run: Callable[[], Tensor], names: list[str]) -> _Trace:
    trace = _Trace({}, {})

    def hook(name: str) -> Any:
        def take(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if values and values[0].is_floating_point():
                trace.inputs[name] = values[0].detach()
            if isinstance(output, Tensor):
                trace.outputs[name] = output.detach()

        return take

    with contextlib.ExitStack() as stack:
        for name in names:
            handle = block.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        run()
    return trace


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same rows of channels, whatever their other dimensions."""
    if a.numel() != b.numel() or a.shape[-1] != b.shape[-1]:
        return False
    return torch.equal(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
