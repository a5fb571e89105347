"""A packed checkpoint in vLLM: which of its layers are packed, and what they do with their input.

What is packed how is read from the same plan as in transformers, made on the meta device from the config of the model.
vLLM joins layers that read the same input (q, k and v): their packed rows are joined just so, since a row stands alone.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    RowParallelLinear,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.parameter import ChannelQuantScaleParameter, ModelWeightParameter

from ..config import QUANT_METHOD, QllmConfig
from ..errors import ModelError, QllmWarning
from ..layout import BLOCK
from ..ops import linear
from ..packed import PackedTensor, packed_shapes
from ..plan import Entry, make_plan
from ..scheme import FLOAT_BITS, PER_ROW, PER_TENSOR, Spec

PARTS = {"words": "weight_packed", "scale": "weight_scale", "zero_point": "weight_zero_point"}


@register_quantization_config(QUANT_METHOD)
class QllmVllmConfig(QuantizationConfig):
    """The quantization_config of a packed checkpoint, as vLLM asks for it."""

    def __init__(self, config: QllmConfig) -> None:
        super().__init__()
        self.config = config
        self.entries: dict[str, Entry] = {}

    def __repr__(self) -> str:
        return f"QllmVllmConfig({self.config.scheme})"

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QllmVllmConfig:
        return cls(QllmConfig.from_dict(config))

    def maybe_update_config(
        self, model_name: str, hf_config: PreTrainedConfig | None = None, revision: str | None = None
    ) -> None:
        """Make the plan of the model. Raises ModelError for what vLLM's layers have no place for."""
        if hf_config is None:
            raise ModelError("this version of vLLM does not say which model is loaded. Use vLLM 0.32 or later.")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf_config)
        entries = make_plan(model, self.config, check_patterns=False).quantized()
        for entry in entries:
            if entry.kind == "experts":
                raise ModelError(f"{entry.name}: packed experts cannot be served by vLLM. Use `qllm-hf serve`.")
            if entry.is_head and hf_config.tie_word_embeddings:
                raise ModelError(
                    f"{entry.module} is packed beside the embedding that it was tied to, and vLLM would use the "
                    "embedding. Quantize without the head, or use `qllm-hf serve`."
                )
            if entry.input_scale:
                raise ModelError(f"{entry.module}: an input scale cannot be served by vLLM. Use `qllm-hf serve`.")
            if entry.input_order:
                raise ModelError(
                    f"{entry.module}: an order of inputs (act order) cannot be served by vLLM. Use `qllm-hf serve`."
                )
            if entry.weight is not None and entry.weight.group_size == PER_TENSOR:
                raise ModelError(f"{entry.module}: one scale per matrix cannot be joined with others in vLLM.")
        self.entries = {entry.module: entry for entry in entries}
        if self.config.scheme.kv < FLOAT_BITS:
            warnings.warn(
                f"KV{self.config.scheme.kv} has no effect here: the cache is vLLM's own. It has --kv-cache-dtype.",
                QllmWarning,
                stacklevel=2,
            )

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """How a layer computes: on packed weights, or as ever. Raises ModelError if layers that vLLM joins differ."""
        if not isinstance(layer, LinearBase | ParallelLMHead):
            return None
        parent, _, last = prefix.rpartition(".")
        names = [f"{parent}.{part}" if parent else part for part in self.packed_modules_mapping.get(last, [last])]
        found = {name: self.entries.get(name) for name in names}
        specs = {None if entry is None else (entry.weight, entry.activation) for entry in found.values()}
        if len(specs) > 1:
            raise ModelError(
                f"vLLM joins {', '.join(names)}, which are packed in different ways here. Quantize them alike, or use "
                "`qllm-hf serve`."
            )
        first = next(iter(found.values()))
        if first is None or first.weight is None:
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
        return QllmLinearMethod(first.weight, first.activation)


@register_weight_loader_v2_supported_method
class QllmLinearMethod(LinearMethodBase):
    """One linear layer on packed weights, with qllm_hf's own kernels."""

    def __init__(self, weight: Spec, activation: Spec | None) -> None:
        self.weight, self.activation = weight, activation
        self.length = 0

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Room for the rows of this layer that are on this rank. Raises ModelError for rows that cannot be cut here."""
        self._check_cut(layer, input_size_per_partition, input_size)
        rows, load = sum(output_partition_sizes), extra_weight_attrs["weight_loader"]
        shapes = packed_shapes((rows, input_size_per_partition), self.weight, params_dtype)
        for part, (shape, dtype) in shapes.items():
            data = torch.empty(shape, dtype=dtype)
            if part != "words" and self.weight.group_size == PER_ROW:
                parameter = ChannelQuantScaleParameter(data=data, output_dim=0, weight_loader=load)
            else:
                parameter = ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=load)
            layer.register_parameter(PARTS[part], parameter)
        self.length = input_size_per_partition
        guard = nn.Parameter(torch.empty(1, dtype=torch.uint8), requires_grad=False)
        guard.weight_loader = _pass_over  # type: ignore[attr-defined]
        layer.register_parameter("weight", guard)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """What was loaded, as one packed tensor."""
        del layer._parameters["weight"]
        for name in PARTS.values():
            if name in layer._parameters:
                layer.register_parameter(name, nn.Parameter(layer.get_parameter(name).data, requires_grad=False))

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., I] times the packed weight [O, I], plus bias."""
        words, scale, zero_point = (layer._parameters.get(name) for name in PARTS.values())
        assert words is not None and scale is not None
        packed = PackedTensor(words, scale, zero_point, self.weight, self.length)
        return linear(x, packed, bias, self.activation)

    def _check_cut(self, layer: nn.Module, part: int, whole: int) -> None:
        if part == whole:
            return
        step = max(BLOCK, self.weight.group_size)
        if self.weight.group_size != PER_ROW and part % step:
            raise ModelError(
                f"rows of {whole} cannot be cut into pieces of {part}: packed rows are cut at multiples of {step}. "
                "Use another --tensor-parallel-size, or quantize in smaller groups."
            )
        if self.activation is not None and isinstance(layer, RowParallelLinear):
            raise ModelError("inputs that are cut over several devices cannot be quantized per token in vLLM.")


def _pass_over(parameter: nn.Parameter, loaded: Tensor, *where: Any, **more: Any) -> None:
    """The guard of the format, which keeps readers that do not know it from going on, has done its work."""
