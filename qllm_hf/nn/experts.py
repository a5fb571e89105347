"""Fused experts: the 3-D weights of a mixture of experts, packed.

transformers 5 keeps all experts of a layer in one 3-D parameter, which quantizers that look for
nn.Linear miss: 87 to 97 % of such a model. The module is kept and its class is exchanged for a subclass
that shares everything (gate function, activation, biases) except the weights and the forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import expert_product
from ..packed import PackedTensor
from ..scheme import Spec
from .activation import fake_quantize_rows
from .parameters import PackedModule

_WEIGHT_NAMES = ("gate_up_proj", "up_proj", "down_proj")


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The 3-D weights of a fused experts module by name; empty if the module is none.

    Recognized by what transformers' `use_experts_implementation` sets on the instance, not by a class name.
    """
    if not (hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "has_bias")):
        return {}
    found = {name: module._parameters.get(name) for name in _WEIGHT_NAMES}
    weights = {name: value for name, value in found.items() if value is not None and value.dim() == 3}
    return weights if "down_proj" in weights and len(weights) == 2 else {}


class PackedExperts(PackedModule):
    """The forward of fused experts on packed weights [E, O, I]; an expert is dequantized when it is hit."""

    is_transposed: bool
    has_gate: bool
    has_bias: bool
    num_experts: int
    _apply_gate: Callable[[Tensor], Tensor]
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]

    def __reduce__(self) -> Any:
        # the class is made from one of transformers, so a pickle names that one
        return _empty_experts, (type(self).__bases__[1],), self.__dict__

    def pack(self, name: str, weight: Tensor) -> PackedTensor:
        """The packed form of a float weight [E, O, I], or [E, I, O] where the model stores it transposed."""
        matrix = weight.transpose(-1, -2).contiguous() if self.is_transposed else weight
        return PackedTensor.encode_weight(matrix, self.weight_specs[name][0])

    def unpack(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The float weight in the model's own orientation."""
        weight = self.packed(name).decode(dtype)
        return weight.transpose(-1, -2).contiguous() if self.is_transposed else weight

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [T, I], the chosen experts [T, k] and their weights [T, k] -> [T, I]."""
        first = "gate_up_proj" if self.has_gate else "up_proj"
        tokens, choices = top_k_index.shape
        experts = top_k_index.reshape(-1)
        hidden = self._product(hidden_states, first, experts, None)  # [T * k, ..]: a row per token and choice
        hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)
        hidden = self._product(hidden, "down_proj", experts, self.range_group)
        if getattr(self, "has_post_expert_norm", False):
            hidden = self.post_expert_norm(hidden)
        # an expert number past the last one marks a token of another process (expert parallelism)
        weights = (top_k_weights.reshape(-1) * (experts < self.num_experts)).to(hidden.dtype)
        weighted = hidden * weights.unsqueeze(-1)
        return weighted.reshape(tokens, choices, weighted.shape[-1]).sum(1, dtype=torch.float32).to(hidden_states.dtype)

    def _product(self, x: Tensor, name: str, experts: Tensor, range_group: Any) -> Tensor:
        activation = self.activation_spec
        if activation is not None and (range_group is not None or (torch.is_grad_enabled() and x.requires_grad)):
            x = fake_quantize_rows(x, activation, range_group)
            activation = None
        y = expert_product(x, experts, self.packed(name), activation)
        if self.has_bias:
            y = y + getattr(self, name + "_bias")[experts.clamp(max=self.num_experts - 1)]
        return y


@functools.cache
def packed_experts_class(cls: Any) -> Any:
    """The subclass of an experts class that runs on packed weights."""

    def weight_property(name: str) -> property:
        def read(self: PackedExperts) -> Tensor:
            placeholder = self._parameters.get(name)
            return self.unpack(name) if placeholder is None else placeholder

        return property(read)

    members: dict[str, Any] = {name: weight_property(name) for name in _WEIGHT_NAMES}
    members |= {"__module__": __name__, "__doc__": f"{cls.__name__} on packed weights."}
    return type("Packed" + cls.__name__, (PackedExperts, cls), members)


def _empty_experts(cls: Any) -> Any:
    packed = packed_experts_class(cls)
    return packed.__new__(packed)


def pack_experts_(
    module: nn.Module, spec: Spec, activation: Spec | None, *, device: torch.device | str, placeholder: bool
) -> None:
    """Turn a fused experts module into its packed form, in place, with empty packed weights on `device`."""
    weights = expert_parameters(module)
    original: Any = type(module)
    module.__class__ = packed_experts_class(original)
    assert isinstance(module, PackedExperts)
    module.weight_specs = {}
    module.activation_spec = activation
    if not hasattr(module, "num_experts"):
        module.num_experts = next(iter(weights.values())).shape[0]
    for name, weight in weights.items():
        experts, rows, columns = weight.shape
        shape = (experts, columns, rows) if module.is_transposed else (experts, rows, columns)
        del module._parameters[name]
        module.declare_packed(name, shape, spec, weight.dtype, device)
        if placeholder:
            module._parameters[name] = nn.Parameter(weight.data.to("meta"), requires_grad=False)
    # or the model's _init_weights would fill weights that no longer exist
    module._is_hf_initialized = True  # type: ignore[assignment]
