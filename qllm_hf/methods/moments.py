"""What the inputs of linear layers look like, gathered in one pass and in constant memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..nn import expert_parameters
from ..scheme import Spec
from ..uniform import fake_quantize

SAMPLE = 512
"""Tokens that are kept as they are."""


@dataclass
class Moments:
    """Sums over the tokens [.., I] that a layer got.

    Attributes:
        count: number of tokens.
        second: [I, I], the sum of x x^T: the layer's output error is a quadratic form of it.
        magnitude: [I], the sum of |x|.
        peak: [I], the largest |x|.
        sample: [at most SAMPLE, I], some of the tokens.
        drift: [I, I], the sum of (y - x) x^T, where y is what the layer reads in the float model; None if only
            one model was run.
    """

    count: int
    second: Tensor
    magnitude: Tensor
    peak: Tensor
    sample: Tensor
    drift: Tensor | None = None

    @classmethod
    def empty(cls, length: int, device: torch.device | str) -> Moments:
        """Of no tokens yet, for inputs of `length` channels."""
        square, row = torch.zeros(length, length, device=device), torch.zeros(length, device=device)
        return cls(0, square, row, row.clone(), torch.empty(0, length, device=device))

    def add(self, x: Tensor, keep: int = SAMPLE, y: Tensor | None = None) -> None:
        """Take in tokens x [T, I]; `keep` of them, evenly spaced, for the sample while it has room.

        y [T, I] is what the float model has in their place.
        """
        self.count += x.shape[0]
        if y is not None:
            if self.drift is None:
                self.drift = torch.zeros_like(self.second)
            self.drift.addmm_((y - x).t(), x)
        self.second.addmm_(x.t(), x)
        absolute = x.abs()
        self.magnitude += absolute.sum(0)
        if x.shape[0]:
            self.peak = torch.maximum(self.peak, absolute.amax(0))
        wanted = min(keep, SAMPLE - self.sample.shape[0], x.shape[0])
        if wanted > 0:
            at = torch.linspace(0, x.shape[0] - 1, wanted, device=x.device).round().long()
            self.sample = torch.cat([self.sample, x[at]])

    def mean_magnitude(self) -> Tensor:
        """[I], the mean of |x|."""
        return self.magnitude / max(self.count, 1)

    def scaled(self, factor: Tensor) -> Moments:
        """The moments of x * factor, factor [I]."""
        return replace(
            self,
            second=self.second * factor * factor.unsqueeze(-1),
            drift=None if self.drift is None else self.drift * factor * factor.unsqueeze(-1),
            magnitude=self.magnitude * factor,
            peak=self.peak * factor,
            sample=self.sample * factor,
        )


class Inputs:
    """The moments of every weight of a block, by the weight's name within the block.

    Layers that read the same tensor, rounded alike, share one Moments. Of experts, each weight has a list of them, one
    an expert.

    Args:
        prefix: name of the block, for messages.
        activations: name of a weight -> how its input is rounded before it is looked at.
    """

    def __init__(self, prefix: str, activations: Mapping[str, Spec | None] | None = None) -> None:
        self.prefix = prefix
        self.activations = activations or {}
        self.float_inputs: dict[str, Tensor] = {}  # of this forward pass: what the float model has there
        self.moments: dict[str, Moments | list[Moments]] = {}
        self._readers: list[tuple[Tensor, str]] = []  # of this forward pass: tensor, first layer that read it

    def of(self, name: str) -> Moments:
        """The moments of one weight that is no expert's."""
        found = self.moments[name]
        assert isinstance(found, Moments)
        return found

    def of_experts(self, name: str) -> list[Moments]:
        """The moments of one weight of all experts."""
        found = self.moments[name]
        assert isinstance(found, list)
        return found

    def rescale(self, name: str, factor: Tensor) -> None:
        """Say that the inputs of a weight are multiplied by factor [I] from now on (of experts: [I] or [E, I])."""
        found = self.moments[name]
        if isinstance(found, list):
            factors = factor if factor.dim() == 2 else factor.expand(len(found), -1)
            self.moments[name] = [one.scaled(part) for one, part in zip(found, factors, strict=True)]
        else:
            self.moments[name] = found.scaled(factor)

    def watch_linear(self, name: str, x: Tensor, keep: int) -> None:
        """Take in what a linear layer reads, x [.., I]."""
        spec = self.activations.get(name)
        alike = (reader for tensor, reader in self._readers if tensor is x and self.activations.get(reader) == spec)
        first = next(alike, None)
        if first is not None:
            self.moments[name] = self.moments[first]
            return
        self._readers.append((x, name))
        self._check(name, x)
        if name not in self.moments:
            self.moments[name] = Moments.empty(x.shape[-1], x.device)
        self.of(name).add(self._rows(name, x), keep, self._float_rows(name))

    def watch_experts(self, name: str, module: Any, x: Tensor, chosen: Tensor, keep: int) -> None:
        """Take in what fused experts read, x [T, I] with the chosen experts [T, k], and what is between their
        two products."""
        self._check(name, x)
        first = "gate_up_proj" if module.has_gate else "up_proj"
        weights = expert_parameters(module)
        count = weights["down_proj"].shape[0]
        outer, inner = f"{name}.{first}", f"{name}.down_proj"
        there = self._float_rows(name)
        for index in range(count):
            rows = torch.where(chosen == index)[0]
            tokens = self._rows(outer, x[rows])
            hidden = self._rows(inner, expert_hidden(module, tokens, index))
            y = None if there is None else there[rows]
            y_hidden = None if y is None else expert_hidden(module, y, index)
            for key, value, other in ((outer, tokens, y), (inner, hidden, y_hidden)):
                if key not in self.moments:
                    self.moments[key] = [Moments.empty(value.shape[-1], x.device) for _ in range(count)]
                self.of_experts(key)[index].add(value, keep, other)

    def next_pass(self) -> None:
        """Another forward pass begins."""
        self._readers.clear()
        self.float_inputs.clear()

    def _rows(self, weight: str, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        spec = self.activations.get(weight)
        return rows if spec is None else fake_quantize(rows, spec)

    def _float_rows(self, name: str) -> Tensor | None:
        found = self.float_inputs.get(name)
        return None if found is None else found.reshape(-1, found.shape[-1]).float()

    def _check(self, name: str, x: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            kind = "NaN" if bool(torch.isnan(x).any()) else "infinite values"
            layer = f"{self.prefix}.{name.removesuffix('.weight')}"
            raise CalibrationError(
                f"the input of {layer} holds {kind}: no code can be chosen from it. Check the checkpoint, "
                "starting with what stands before that layer. method='rtn' looks at weights alone."
            )


def expert_hidden(module: Any, x: Tensor, index: int) -> Tensor:
    """What expert `index` hands to its second product, [T, F], for tokens x [T, I]."""
    first = "gate_up_proj" if module.has_gate else "up_proj"
    weight = expert_parameters(module)[first][index]
    y = x @ (weight if module.is_transposed else weight.t()).to(x.dtype)
    if module.has_bias:
        y = y + getattr(module, f"{first}_bias")[index].to(x.dtype)
    hidden: Tensor = module._apply_gate(y) if module.has_gate else module.act_fn(y)
    return hidden


@contextlib.contextmanager
def keeping(block: nn.Module, linears: list[str], experts: list[str], kept: dict[str, Tensor]) -> Iterator[None]:
    """Within the block, what the named layers of a decoder block read is kept, under the names that `watching` uses."""

    def hook(name: str) -> Any:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[name] = [*args, *kwargs.values()][0].detach()

        return keep

    names = [(name, f"{name}.weight") for name in linears] + [(name, name) for name in experts]
    handles = [block.get_submodule(name).register_forward_pre_hook(hook(key), with_kwargs=True) for name, key in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def watching(block: nn.Module, linears: list[str], experts: list[str], inputs: Inputs, keep: int) -> Iterator[None]:
    """Within the block, all that the named layers of a decoder block read goes into `inputs`."""

    def hook_linear(name: str) -> Any:
        return lambda module, args: inputs.watch_linear(f"{name}.weight", args[0], keep)

    def hook_experts(name: str) -> Any:
        def take(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = [*args, *kwargs.values()]
            inputs.watch_experts(name, module, values[0], values[1], keep)

        return take

    handles = [block.get_submodule(name).register_forward_pre_hook(hook_linear(name)) for name in linears]
    handles += [
        block.get_submodule(name).register_forward_pre_hook(hook_experts(name), with_kwargs=True) for name in experts
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
