"""PackedLinear: a linear layer whose weight is packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..ops import linear
from ..packed import PackedTensor
from ..scheme import Spec
from .activation import fake_quantize_rows
from .parameters import PackedModule
from .read_only import ReadOnlyTensor


class PackedLinear(PackedModule, nn.Linear):
    """y = x W^T + b with W [O, I] packed along I. Takes the place of nn.Linear, its plain subclasses, and Conv1D.

    Attributes:
        transposed: the layer stands for a Conv1D, whose float weight is [I, O]; what is packed is [O, I] all the same.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        spec: Spec,
        activation: Spec | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        transposed: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.transposed = transposed
        self.weight_specs = {}
        self.activation_spec = activation
        self.declare_packed("weight", (out_features, in_features), spec, dtype, device)
        value = (
            nn.Parameter(torch.empty(out_features, dtype=dtype, device=device), requires_grad=False) if bias else None
        )
        self.register_parameter("bias", value)

    def pack(self, weight: Tensor) -> PackedTensor:
        """The packed form of a float weight in this layer's own orientation."""
        matrix = weight.t().contiguous() if self.transposed else weight
        return PackedTensor.encode_weight(matrix, self.weight_specs["weight"][0])

    def add_placeholder(self, dtype: torch.dtype) -> None:
        """Make the float weight exist on the meta device: its checkpoint tensor is packed when it arrives."""
        shape = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        self._parameters["weight"] = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in floating point: a read-only dequantized copy, or the placeholder while loading."""
        placeholder = self._parameters.get("weight")
        if placeholder is not None:
            return placeholder
        matrix = self.packed("weight").decode()
        copy = (matrix.t() if self.transposed else matrix).as_subclass(ReadOnlyTensor)
        copy.__dict__["_is_hf_initialized"] = True  # or the model's _init_weights would try to fill it
        return copy

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and "weight" not in self._parameters:
            raise ModelError("this weight is packed and read-only. Call model.dequantize() first.")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        activation = self.activation_spec
        if activation is not None and (self.range_group is not None or (torch.is_grad_enabled() and x.requires_grad)):
            x = fake_quantize_rows(x, activation, self.range_group)
            activation = None
        return linear(x, self.packed("weight"), self.bias, activation)

    def extra_repr(self) -> str:
        spec, _ = self.weight_specs["weight"]
        activation = f", a={self.activation_spec.bits}" if self.activation_spec else ""
        return f"{self.in_features}, {self.out_features}, w={spec.bits}, group_size={spec.group_size}{activation}"
