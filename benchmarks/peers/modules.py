"""Libraries whose quantized layer takes the place of `nn.Linear`: torchao, quanto, HQQ, bitsandbytes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qllm_hf.scheme import FLOAT_BITS, PER_ROW

from .method import Method, check_groups, clone_tensor, need


def linear_layer(weight: Tensor) -> nn.Linear:
    """An ordinary layer in bfloat16 with that weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16, device="meta")
    layer.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    return layer.eval()


def torchao(weight: Tensor, module: str, config: str, **options: Any) -> nn.Module:
    """The layer after torchao's `quantize_` with that config."""
    check_groups(weight, options.get("group_size", PER_ROW))
    layer = linear_layer(weight)
    need("torchao.quantization").quantize_(layer, getattr(need(module), config)(**options))
    return layer


def quanto(weight: Tensor, qtype: str) -> nn.Module:
    """A frozen QLinear of quanto."""
    library = need("optimum.quanto")
    layer = library.QLinear.from_module(linear_layer(weight), weights=library.qtypes[qtype])
    layer.freeze()
    return layer.eval()


def clone_quanto(layer: nn.Module) -> nn.Module:
    """quanto's tensors cannot be copied by `deepcopy`."""
    made = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    made._parameters["weight"] = nn.Parameter(clone_tensor(layer.weight), requires_grad=False)
    return made


def hqq(weight: Tensor, bits: int) -> nn.Module:
    """HQQ's layer, axis 1, groups of 64, its default backend."""
    library = need("hqq.core.quantize")
    config = library.BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    return library.HQQLinear(linear_layer(weight), config, compute_dtype=torch.bfloat16, device="cpu").eval()


@dataclass(frozen=True)
class Nf4:
    """bitsandbytes' 4-bit layer, and what its codes meant before it packed them for the CPU."""

    layer: nn.Module
    meant: Tensor | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Nf4:
        return Nf4(copy.deepcopy(self.layer, memo), None)

    def nbytes(self) -> int:
        """Bytes of codes and scales. A copied parameter still knows the layer it came from, which must not count."""
        weight = self.layer.weight
        return int(weight.data.nbytes + weight.quant_state.absmax.nbytes)


def nf4(weight: Tensor) -> Nf4:
    """NF4 in blocks of 64. The first call in eval mode packs for the CPU."""
    library = need("bitsandbytes")
    layer = library.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    layer.load_state_dict({"weight": weight.bfloat16()})
    layer = layer.to("cpu").eval()
    meant = library.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    layer(weight.new_zeros(1, weight.shape[1], dtype=torch.bfloat16))
    return Nf4(layer, meant)


def int8(weight: Tensor) -> nn.Module:
    """bitsandbytes' LLM.int8 layer, without outliers of its own treatment."""
    library = need("bitsandbytes")
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns in each call
    layer = library.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    layer.weight = library.nn.Int8Params(weight.bfloat16(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    layer(weight.new_zeros(1, weight.shape[1], dtype=torch.bfloat16))  # the first call quantizes
    return layer


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's own forward: y [M, N]."""
    result: Tensor = layer(x)
    return result


def methods() -> list[Method]:
    """All of them."""
    ao, prototype = "torchao.quantization", "torchao.prototype.quantization.int4"
    eager = {"set_inductor_config": False}
    decoded: Callable[[Any], Tensor] = lambda layer: layer.weight.dequantize()  # noqa: E731
    rows = [
        *(
            Method(
                f"torchao int4 weight-only g{group_size}", "torchao", "torchao", "torchao", 4, group_size, FLOAT_BITS,
                partial(torchao, module=prototype, config="PrototypeInt4WeightOnlyConfig", group_size=group_size,
                        **eager), call,
            )
            for group_size in (32, 128)
        ),
        Method(
            "torchao int8 weight-only", "torchao", "torchao", "torchao", 8, PER_ROW, FLOAT_BITS,
            partial(torchao, module=ao, config="Int8WeightOnlyConfig", **eager), call, meant=decoded,
        ),
        Method(
            "torchao int8 dynamic", "torchao", "torchao", "torchao", 8, PER_ROW, 8,
            partial(torchao, module=ao, config="Int8DynamicActivationInt8WeightConfig", **eager), call,
            meant=decoded,
        ),
        *(
            Method(
                f"quanto qint{bits}", "quanto", "optimum.quanto", "optimum-quanto", bits, group_size, FLOAT_BITS,
                partial(quanto, qtype=f"qint{bits}"), call, meant=decoded, clone=clone_quanto,
            )
            for bits, group_size in ((8, PER_ROW), (4, 128), (2, 128))
        ),
        *(
            Method(
                f"HQQ {bits} bit g64", "HQQ", "hqq", "hqq", bits, 64, FLOAT_BITS,
                partial(hqq, bits=bits), call, meant=lambda layer: layer.dequantize(),
            )
            for bits in (8, 4)
        ),
        Method(
            "bitsandbytes nf4 g64", "bitsandbytes", "bitsandbytes", "bitsandbytes", 4, 64, FLOAT_BITS,
            nf4, lambda state, x: call(state.layer, x), meant=lambda state: state.meant,
        ),
        Method(
            "bitsandbytes int8", "bitsandbytes", "bitsandbytes", "bitsandbytes", 8, PER_ROW, 8, int8, call,
            meant=lambda layer: layer.state.CB.float() * layer.state.SCB.float()[:, None] / 127,
        ),
    ]  # fmt: skip
    return rows
