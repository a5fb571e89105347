"""How a module holds packed weights: plain parameters beside the name of the float weight they replace.

The weight `NAME` becomes `NAME_packed` (int16 words), `NAME_scale` (float) and, unless symmetric,
`NAME_zero_point` (uint8): for a linear layer `weight_packed`, for experts `gate_up_proj_packed`.
Plain parameters, so that state dicts, sharded files, device maps, offloading and tensor parallelism
need no special code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..packed import PackedTensor, packed_shapes
from ..scheme import Spec

SUFFIXES = {"words": "_packed", "scale": "_scale", "zero_point": "_zero_point"}


class PackedModule(nn.Module):
    """Base of modules with packed weights.

    Attributes:
        weight_specs: name of a packed weight -> (how it is quantized, length of its rows).
        activation_spec: how inputs are quantized per token, or None.
        range_group: the process group over which a row-sharded input must agree on its range, or None.
        row_parts: name of a packed weight -> the number of processes that its rows are cut over (tensor parallelism),
            of those that are.
        is_cut: some parameters are distributed tensors, of which this process holds a part.
    """

    weight_specs: dict[str, tuple[Spec, int]]
    activation_spec: Spec | None
    range_group: Any = None
    row_parts: Mapping[str, int] | None = None
    is_cut: bool = False
    # transformers then hands the local shard, not the distributed tensor, to forward
    _hf_quantized_needs_local_tp = True

    def declare_packed(
        self, name: str, shape: tuple[int, ...], spec: Spec, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Register empty parameters for a packed weight of the given float shape [..., O, I] and scale dtype."""
        for part, (part_shape, part_dtype) in packed_shapes(shape, spec, dtype).items():
            tensor = torch.empty(part_shape, dtype=part_dtype, device=device)
            self.register_parameter(name + SUFFIXES[part], nn.Parameter(tensor, requires_grad=False))
        self.weight_specs[name] = (spec, shape[-1])

    def declared(self, name: str) -> list[Tensor]:
        """The parameters of a packed weight, loaded or not."""
        parts = (self._parameters.get(name + suffix) for suffix in SUFFIXES.values())
        return [part for part in parts if part is not None]

    def packed(self, name: str) -> PackedTensor:
        """The packed weight of that name, made of this process's shards."""
        spec, length = self.weight_specs[name]
        parts = {part: local(self._parameters.get(name + suffix)) for part, suffix in SUFFIXES.items()}
        words, scale = parts["words"], parts["scale"]
        if words is None or scale is None:
            raise CheckpointError(f"{type(self).__name__}: the packed weight {name!r} was never loaded.")
        return PackedTensor(words, scale, parts["zero_point"], spec, length // self.parts(name))

    def parts(self, name: str) -> int:
        """The number of processes that the rows of a packed weight are cut over: 1 but for tensor parallelism."""
        return 1 if self.row_parts is None else self.row_parts.get(name, 1)

    def assign_packed(self, name: str, packed: PackedTensor) -> None:
        """Replace the parameters of a packed weight."""
        for part, suffix in SUFFIXES.items():
            tensor = getattr(packed, part)
            if tensor is not None:
                parameter = nn.Parameter(tensor, requires_grad=False)
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # as transformers marks what it loaded
                self._parameters[name + suffix] = parameter

    def packed_names(self) -> list[str]:
        """Names of all parameters that hold packed weights."""
        return [n + s for n in self.weight_specs for s in SUFFIXES.values() if n + s in self._parameters]


@overload
def local(parameter: Tensor) -> Tensor: ...
@overload
def local(parameter: None) -> None: ...
def local(parameter: Tensor | None) -> Tensor | None:
    """The shard of a distributed tensor that lives here, or the tensor itself."""
    if parameter is not None and hasattr(parameter, "to_local"):
        shard: Tensor = parameter.to_local()
        return shard
    return parameter
