"""What a quantized checkpoint is to the library that wrote it: logits by its kernels, integers by its own unpacking.

    python benchmarks/peers/reader.py FOLDER TOKENS.safetensors OUT.safetensors --dtype float16

Runs in an environment that has the library, and needs nothing of qllm_hf. The model is loaded in `--dtype`, that of its
scales, and then computes in float32, so that what differs is not the rounding of 16-bit products. Where a kernel takes
16-bit inputs only, the library's own function makes its weight, and torch multiplies. TOKENS holds `ids` int64 [N, T].
OUT gets `logits` float32 [N, T, V], and for each quantized layer `codes/NAME` uint8 [O, I], `zero/NAME` uint8 [O, G]
and `scale/NAME` [O, G]; its metadata names the library and what ran the products.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it does not start with the one that it takes for two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Layer = tuple[str, Tensor, Tensor | None, Tensor]  # name, codes [O, I], zero points [O, G], scale [O, G]


def read(folder: Path, ids: Tensor, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything that OUT holds."""
    quantization = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    load, unpack, library = READERS[quantization["quant_method"]]
    model = _plain(nn.Module.float(load(folder, dtype))).eval()  # transformers forbids .float()
    with torch.no_grad():
        found = {"logits": torch.cat([model(row[None], use_cache=False).logits.float() for row in ids])}
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= load_file(path)
    for name, codes, zero, scale in unpack(stored, quantization):
        found[f"codes/{name}"] = codes.to(torch.uint8).contiguous()
        if zero is not None:
            found[f"zero/{name}"] = zero.to(torch.uint8).contiguous()
        found[f"scale/{name}"] = scale.contiguous()
    kernels = sorted({getattr(m, "made_by", type(m).__name__) for m in model.modules() if _is_quantized(m)})
    return found, {"library": f"{library} {version(library)}", "kernels": ", ".join(kernels), "dtype": str(dtype)}


def _is_quantized(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in ("qweight", "quantization_scheme", "made_by"))


def _plain(model: nn.Module) -> nn.Module:
    """The model with ordinary layers in the place of AWQ kernels, which turn every input into 16 bits."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ != "AwqTorchLinear":
            continue
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
        layer = nn.Linear(*weight.shape, bias=module.bias is not None)
        layer.weight = nn.Parameter(weight.T.contiguous())
        if module.bias is not None:
            layer.bias = nn.Parameter(module.bias)
        layer.made_by = "dequantize_gemm"
        model.set_submodule(name, layer)
    return model


def _gptqmodel(folder: Path, dtype: torch.dtype) -> nn.Module:
    from gptqmodel import BACKEND, GPTQModel

    method = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]["quant_method"]
    backend = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH
    model: nn.Module = GPTQModel.load(str(folder), device="cpu", backend=backend, dtype=dtype).model
    return model


def _transformers(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
    return model


def _named(stored: dict[str, Tensor], end: str) -> Iterator[str]:
    return (name.removesuffix(end) for name in stored if name.endswith(end))


def _gptq_layers(stored: dict[str, Tensor], quantization: dict[str, Any]) -> Iterator[Layer]:
    from gptqmodel.utils.model_dequant import unpack_cols, unpack_rows

    for name in _named(stored, ".qweight"):
        qweight, qzeros, scales = (stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        bits = qzeros.shape[1] * 32 // scales.shape[1]
        if _is_first_format(quantization):
            qzeros = _plus_one(qzeros, bits)
        zero = unpack_cols(qzeros, bits)
        yield name, unpack_rows(qweight, bits).T, zero.T, scales.T


def _is_first_format(quantization: dict[str, Any]) -> bool:
    if quantization["quant_method"] == "auto-round":
        return "gptq" in quantization["packing_format"] and "gptqmodel" not in quantization["packing_format"]
    return quantization.get("checkpoint_format", "gptq") == "gptq"


def _plus_one(qzeros: Tensor, bits: int) -> Tensor:
    """As GPTQModel turns the first format into the second when it loads a model."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    class ZeroPoints(BaseQuantLinear):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.register_buffer("qzeros", qzeros.clone())

        def qzero_format(self, format: int | None = None) -> int:
            return format or 1

    module = ZeroPoints()
    convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    converted: Tensor = module.qzeros
    return converted


def _awq_layers(stored: dict[str, Tensor], quantization: dict[str, Any]) -> Iterator[Layer]:
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq

    for name in _named(stored, ".qweight"):
        qweight, qzeros, scales = (stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        bits = qzeros.shape[1] * 32 // scales.shape[1]
        codes, zero = reverse_awq_order(*unpack_awq(qweight, qzeros, bits, scales.shape[1]), bits)
        yield name, codes.T, zero.T, scales.T


def _compressed_layers(stored: dict[str, Tensor], quantization: dict[str, Any]) -> Iterator[Layer]:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    for name in _named(stored, ".weight_scale"):
        scale = stored[f"{name}.weight_scale"]
        zero = stored.get(f"{name}.weight_zero_point")
        if f"{name}.weight_packed" in stored:
            packed, shape = stored[f"{name}.weight_packed"], stored[f"{name}.weight_shape"]
            bits = packed.shape[1] * 32 // int(shape[1])
            codes = unpack_from_int32(packed, bits, shape)
            if zero is not None and zero.dtype == torch.int32:
                zero = unpack_from_int32(zero, bits, torch.Size((int(shape[0]), scale.shape[1])), packed_dim=0)
        else:
            bits, codes = 8, stored[f"{name}.weight"]
        middle = 2 ** (bits - 1)
        zero = None if zero is None else zero.to(torch.int32) + middle
        yield name, codes.to(torch.int32) + middle, zero, scale


READERS = {
    "gptq": (_gptqmodel, _gptq_layers, "gptqmodel"),
    "awq": (_gptqmodel, _awq_layers, "gptqmodel"),
    "auto-round": (_transformers, _gptq_layers, "auto-round"),
    "compressed-tensors": (_transformers, _compressed_layers, "compressed-tensors"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", required=True)
    given = parser.parse_args()
    with safe_open(given.tokens, framework="pt") as file:
        ids = file.get_tensor("ids")
    found, metadata = read(given.folder, ids, getattr(torch, given.dtype))
    save_file(found, given.out, metadata=metadata)


if __name__ == "__main__":
    main()
