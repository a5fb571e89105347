"""PackedLinear: a linear layer whose weight is packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..input_order import in_own_order
from ..ops import Shortcut, linear
from ..ordinary import is_ordinary
from ..packed import PackedTensor
from ..scheme import Spec
from .activation import fake_quantize_rows
from .parameters import PackedModule, local
from .read_only import ReadOnlyTensor
from .siblings import Siblings


class PackedLinear(PackedModule, nn.Linear):
    """y = x W^T + b with W [O, I] packed along I. Takes the place of nn.Linear, its plain subclasses, and Conv1D.

    Attributes:
        input_scale: [I], what the input is multiplied by first, or None. A method that moves magnitude from
            activations into weights puts it here where no earlier layer can take it.
        input_order: int32 [I], or None: column k of the packed row multiplies input order[k], after its scale. Rows of
            other libraries whose groups are not runs of neighbouring columns are stored so.
        transposed: the layer stands for a Conv1D, whose float weight is [I, O]; what is packed is [O, I] all the same.
    """

    siblings: Siblings | None = None
    _shortcut: Shortcut | None = None

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
        input_scale: bool = False,
        input_order: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.transposed = transposed
        self.weight_specs = {}
        self.activation_spec = activation
        self.declare_packed("weight", (out_features, in_features), spec, dtype, device)

        def vector(length: int, dtype: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(length, dtype=dtype, device=device), requires_grad=False)

        self.register_parameter("bias", vector(out_features) if bias else None)
        self.register_parameter("input_scale", vector(in_features) if input_scale else None)
        self.register_parameter("input_order", vector(in_features, torch.int32) if input_order else None)

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
        matrix = self.float_matrix()
        copy = (matrix.t() if self.transposed else matrix).as_subclass(ReadOnlyTensor)
        copy.__dict__["_is_hf_initialized"] = True  # or the model's _init_weights would try to fill it
        return copy

    @property
    def _is_hf_initialized(self) -> bool:
        """transformers initializes a module that says no: it would dequantize each weight, to leave it as it is."""
        bias = self._parameters.get("bias")
        return bias is None or getattr(bias, "_is_hf_initialized", False)

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        """What parameters say counts."""

    def assign_input_scale(self, scale: Tensor) -> None:
        """Set what the input is multiplied by, [I]."""
        parameter = nn.Parameter(scale, requires_grad=False)
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # as transformers marks what it loaded
        self.input_scale = parameter

    def assign_input_order(self, order: Tensor) -> None:
        """Set which input each column of the packed row multiplies, int32 [I]."""
        parameter = nn.Parameter(order, requires_grad=False)
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # as transformers marks what it loaded
        self.input_order = parameter

    def float_matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """What the layer multiplies its input by, [O, I] in the dtype of the scales or `dtype`."""
        matrix = self.packed("weight").decode(dtype)
        input_scale, input_order = local(self.input_scale), local(self.input_order)
        if input_order is not None:
            matrix = in_own_order(matrix, input_order)
        return matrix if input_scale is None else matrix * input_scale.to(matrix.dtype)

    def packed_names(self) -> list[str]:
        """Names of all parameters that hold packed weights, scale and order of the input among them."""
        beside = [name for name in ("input_scale", "input_order") if self._parameters[name] is not None]
        return super().packed_names() + beside

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and "weight" not in self._parameters:
            raise ModelError("this weight is packed and read-only. Call model.dequantize() first.")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        parameters = self._parameters
        input_scale, input_order = parameters["input_scale"], parameters["input_order"]
        if input_scale is not None:
            x = x * input_scale.to(x.dtype)
        if input_order is not None:
            x = x.index_select(-1, input_order)  # which checks that it reads inside of x
        if self.range_group is not None or not is_ordinary(x):
            return self._product(x)
        if self.siblings is not None:
            result = self.siblings.product(self, x)
            if result is not None:
                return result
        if not x.is_cpu:
            return self._product(x)
        if self._shortcut is not None:
            results = self._shortcut(x, self.stored())
            if results is not None:
                return results[0]
        y = self._product(x)
        self._shortcut = Shortcut.of(x, [(self.packed("weight"), self.bias)], self.activation_spec)
        return y

    def stored(self) -> tuple[Tensor | None, ...]:
        """Words, scale, zero point and bias, as the parameters that they are, or this process's parts of them."""
        parameters = self._parameters
        zero_point = parameters.get("weight_zero_point")
        found = parameters["weight_packed"], parameters["weight_scale"], zero_point, parameters["bias"]
        return tuple(map(local, found)) if self.is_cut else found

    def _product(self, x: Tensor) -> Tensor:
        activation = self.activation_spec
        if activation is not None and (self.range_group is not None or (torch.is_grad_enabled() and x.requires_grad)):
            x = fake_quantize_rows(x, activation, self.range_group)
            activation = None
        return linear(x, self.packed("weight"), self.bias, activation)

    def extra_repr(self) -> str:
        spec, _ = self.weight_specs["weight"]
        activation = f", a={self.activation_spec.bits}" if self.activation_spec else ""
        return f"{self.in_features}, {self.out_features}, w={spec.bits}, group_size={spec.group_size}{activation}"
