"""Moving a scale along a pair: exact in what the float model computes, and undone where it was only a trial.

The producer is changed first, in the dtype it is stored in, and the consumers get what it really lost. So rounding
of a norm's weight to bfloat16 costs nothing: the columns are multiplied by old / new, not by the scale wished for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..nn import expert_parameters

Kind = Literal["norm", "linear", "experts", "input"]
SMALLEST_SCALE, LARGEST_SCALE = 1e-4, 1e4


@dataclass(frozen=True)
class Pair:
    """A producer of channels, and the weights that read them.

    Attributes:
        kind: what takes 1/s: a norm, the rows of a linear layer, those of all experts, or the reader's own input.
        producer: name of the norm module, or of the weight whose rows take it; empty for "input".
        consumers: names of the weights whose columns take s, within the block.
        rows: int64 [I]: the producer's channel that makes each input channel. Channels that share one (grouped
            query attention) share its scale.
    """

    kind: Kind
    producer: str
    consumers: tuple[str, ...]
    rows: Tensor

    def scale_shape(self, block: nn.Module) -> tuple[int, ...]:
        """Shape of a scale: one for each of the producer's channels in use, for experts one row each."""
        channels = int(torch.unique(self.rows).numel())
        if self.kind == "experts":
            return (block.get_parameter(self.consumers[0]).shape[0], channels)
        return (channels,)

    def spread(self, scale: Tensor) -> Tensor:
        """A scale of the producer's channels [.., n] as one of the input channels [.., I]."""
        _, position = torch.unique(self.rows, return_inverse=True)
        return scale[..., position.to(scale.device)]

    def gathered(self, values: Tensor) -> Tensor:
        """Values of the input channels [.., I] as those of the producer's channels [.., n]: their mean."""
        unique, position = torch.unique(self.rows, return_inverse=True)
        position = position.to(values.device)
        sums = values.new_zeros(*values.shape[:-1], unique.numel()).index_add_(-1, position, values)
        return sums / torch.bincount(position, minlength=unique.numel())


def apply_scale(block: nn.Module, pair: Pair, scale: Tensor, stored: torch.dtype | None = None) -> Tensor:
    """Move a scale: producer / s, consumers * s, in place. Returns the s that the input channels really got [.., I].

    Args:
        scale: of the producer's channels, as `pair.scale_shape`.
        stored: the dtype in which a norm's weight will be stored; by default its own.
    """
    with torch.no_grad():
        scale = _divide_producer(block, pair, scale.float(), stored)
        for name in pair.consumers:
            _multiply_columns(block, name, scale)
    return scale


@contextlib.contextmanager
def applied(block: nn.Module, pair: Pair, scale: Tensor, *, consumers_only: bool = False) -> Iterator[None]:
    """Within the block of code, a scale is moved along a pair; afterwards everything is as it was, bit for bit."""
    touched = [block.get_parameter(name) for name in pair.consumers]
    if pair.kind == "norm":
        touched += list(block.get_submodule(pair.producer).parameters(recurse=False))
    elif pair.producer:
        owner = block.get_submodule(pair.producer.rpartition(".")[0])
        touched += list(owner.parameters(recurse=False))
    before = [(parameter, parameter.detach().clone()) for parameter in touched]
    handle = None
    try:
        with torch.no_grad():
            if consumers_only:
                for name in pair.consumers:
                    _multiply_columns(block, name, pair.spread(scale.float()))
            else:
                moved = apply_scale(block, pair, scale)
                if pair.kind == "input":
                    handle = scale_input(block.get_submodule(pair.consumers[0].rpartition(".")[0]), 1 / moved)
        yield
    finally:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


def scale_input(module: nn.Module, factor: Tensor) -> Any:
    """Make a float layer multiply its input by factor [I], as a packed one with `input_scale` does. A hook's handle."""
    return module.register_forward_pre_hook(lambda _, args: (args[0] * factor.to(args[0].dtype), *args[1:]))


def adds_one(norm: nn.Module) -> bool:
    """Whether a norm multiplies by 1 + weight, as Gemma's do: then a zero weight still lets something through."""
    weight, bias = norm._parameters["weight"], norm._parameters.get("bias")
    assert weight is not None
    probe = torch.ones(1, 1, weight.shape[0], dtype=weight.dtype, device=weight.device)
    probe[..., ::2] = -1  # of mean zero, so that LayerNorm does not turn it into zeros
    before = [(parameter, parameter.detach().clone()) for parameter in (weight, bias) if parameter is not None]
    with torch.no_grad():
        for parameter, _ in before:
            parameter.zero_()
        passed = bool(type(norm).forward(norm, probe).abs().max() > 0)
        for parameter, value in before:
            parameter.copy_(value)
    return passed


def linear_matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer as [O, I], a view, whatever its orientation in memory."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.t() if isinstance(module, Conv1D) else weight


def expert_matrix(module: Any, parameter: str) -> Tensor:
    """A weight of fused experts as [E, O, I], a view, whatever its orientation in memory."""
    weight = expert_parameters(module)[parameter]
    return weight.transpose(-1, -2) if module.is_transposed else weight


def fused_name(experts: Any) -> str:
    """The name of the first weight of fused experts."""
    return "gate_up_proj" if experts.has_gate else "up_proj"


def columns_of(block: nn.Module, name: str) -> Tensor:
    """A weight by its name as [O, I], or [E, O, I] of experts: a view."""
    module_name, _, parameter = name.rpartition(".")
    module = block.get_submodule(module_name)
    if expert_parameters(module):
        return expert_matrix(module, parameter)
    return linear_matrix(module)


def _multiply_columns(block: nn.Module, name: str, scale: Tensor) -> None:
    matrix = columns_of(block, name)
    matrix.mul_(scale.unsqueeze(-2).to(matrix.dtype) if scale.dim() == 2 else scale.to(matrix.dtype))


def _divide_producer(block: nn.Module, pair: Pair, scale: Tensor, stored: torch.dtype | None) -> Tensor:
    """Divide what makes the channels; returns what they lost, as a scale of the input channels."""
    if pair.kind == "input":
        dtype = stored or torch.float32
        return 1 / (1 / scale).to(dtype).float()
    rows = torch.unique(pair.rows)
    if pair.kind == "norm":
        norm: Any = block.get_submodule(pair.producer)
        dtype = stored or norm.weight.dtype
        offset = 1.0 if adds_one(norm) else 0.0
        old = norm.weight.float() + offset
        new = (old / scale - offset).to(dtype).to(norm.weight.dtype)
        really = torch.where(new.float() + offset == 0, torch.ones_like(scale), old / (new.float() + offset))
        really = torch.where(old == 0, torch.ones_like(scale), really)
        norm.weight.copy_(new)
        bias = norm._parameters.get("bias")
        if bias is not None:
            bias.div_(really)
        return really
    if pair.kind == "experts":
        owner, _, parameter = pair.producer.rpartition(".")
        module: Any = block.get_submodule(owner)
        rows = rows.to(scale.device)
        expert_matrix(module, parameter)[:, rows] /= scale.unsqueeze(-1)
        if module.has_bias:
            getattr(module, f"{parameter}_bias")[:, rows] /= scale
        return pair.spread(scale)
    module = block.get_submodule(pair.producer.rpartition(".")[0])
    rows = rows.to(scale.device)
    matrix = linear_matrix(module)
    matrix[rows] = matrix[rows] / scale.unsqueeze(-1)
    if module.bias is not None:
        module.bias[rows] = module.bias[rows] / scale
    return pair.spread(scale)
