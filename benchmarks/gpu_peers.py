"""Other ways to do what a case of gpu.py asks, in torch and in libraries: on the same weights and histories.

They are verified too: products of integers exactly, others against the float weight or history, within what the bits
allow. What is not installed, or refuses, is a row that says so.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from gpu_cases import Case, Method, cloned, ends, make_history, make_weight, nbytes, relative
from torch import Tensor

TO_FLOAT = {8: 0.03, 4: 0.2, 3: 0.4, 2: 0.8}
"""Largest relative error against the float weight, by bits."""
Offer = tuple[str, str, Callable[[torch.device], Method]]


class NotHere(Exception):
    """A library is not installed, or cannot do what is asked; the text says which."""


def peers_of(case: Case) -> Iterator[Offer]:
    """Name, library and how to make each way that could do a case.

    To make one raises NotHere, or whatever the library raises.
    """
    bits, group_size = (int(number) for number in re.match(r"\D+(\d+) (?:g(\d+))?", case.form).groups("-1"))
    if case.operation == "linear":
        n, k = map(int, case.shape.split("x"))
        if bits == 4:
            yield "_weight_int4pack_mm", "torch", lambda device: _int4pack(n, k, case.size, group_size, device)
        yield "GemLite", "gemlite", lambda device: _gemlite(n, k, case.size, bits, group_size, device)
        yield "HQQ", "hqq", lambda device: _hqq(n, k, case.size, bits, group_size, device)
    elif case.operation == "integers" and bits == 8:
        n, k = map(int, case.shape.split("x"))
        yield "_int_mm, product", "torch", lambda device: _int_mm(n, k, case.size, device, dynamic=False)
        yield "_int_mm, all", "torch", lambda device: _int_mm(n, k, case.size, device, dynamic=True)
    elif case.operation == "attention":
        batch, _, shape = case.shape.partition(" x ")
        heads, kv_heads, dim = map(int, shape.replace("/", "x").split("x"))
        sizes = int(batch), heads, kv_heads, dim, case.size
        for backend, widths in (("quanto", (2, 4)), ("hqq", (2, 3, 4, 8))):
            if bits in widths:
                name = f"QuantizedCache, {backend}"
                yield name, "transformers", lambda device, backend=backend: _cache(backend, bits, *sizes, device)


def version_of(library: str) -> str:
    """Of the installed package, or empty."""
    try:
        return metadata.version({"qllm_hf": "qllm-hf"}.get(library, library))
    except metadata.PackageNotFoundError:
        return ""


def need(module: str) -> Any:
    """The imported module.

    Raises:
        NotHere: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # GemLite asks for a GPU when it is imported
        raise NotHere(f"not installed: {type(error).__name__}: {error}") from error


def _tokens(m: int, k: int, device: torch.device) -> Tensor:
    return torch.randn(m, k, device=device).bfloat16()


def _to_float(x: Tensor, weight: Tensor) -> Callable[[Tensor], float]:
    """The error against the float weight."""
    some = ends(len(x), x.device)
    expected = torch.cat([x[some].double() @ rows.double().T for rows in weight.split(2048)], -1)
    return lambda y: relative(y[some], expected)


def _int4pack(n: int, k: int, m: int, group_size: int, device: torch.device) -> Method:
    """torch's own 4-bit product, in its tiled layout: codes - 8, times the scale, plus a float zero."""
    if device.type != "cuda":
        raise NotHere("refuses: the layout is that of a GPU")
    weight, x = make_weight(n, k, device), _tokens(m, k, device)
    groups = weight.float().view(n, -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    codes = ((groups - zero) / scale + 8).round().clamp(0, 15).to(torch.uint8).view(n, k)
    pairs = (codes[:, ::2] << 4) | codes[:, 1::2]
    packed = torch._convert_weight_to_int4pack(pairs.contiguous(), 8)
    scales = torch.cat((scale, zero), -1).transpose(0, 1).contiguous().bfloat16()
    return Method(
        "_weight_int4pack_mm", "torch", lambda: cloned(packed, scales),
        lambda w: torch._weight_int4pack_mm(x, w[0], group_size, w[1]),
        nbytes(packed, scales), _to_float(x, weight), TO_FLOAT[4],
    )  # fmt: skip


def _int_mm(n: int, k: int, m: int, device: torch.device, dynamic: bool) -> Method:
    """torch's integer product, of tokens that are quantized already, or quantized in torch and scaled."""
    weight, x = make_weight(n, k, device), _tokens(m, k, device)
    scale = (weight.float().abs().amax(-1) / 127).bfloat16()
    codes = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    token_scale = x.abs().amax(-1, keepdim=True).float() / 127
    tokens = (x / token_scale).round().to(torch.int8)
    if dynamic:

        def run(w: Any) -> Tensor:
            each = x.abs().amax(-1, keepdim=True).float() / 127
            return (torch._int_mm((x / each).round().to(torch.int8), w[0].t()) * each * w[1]).bfloat16()

        name, error, allowed = "_int_mm, all", _to_float(x, weight), TO_FLOAT[8]
    else:

        def run(w: Any) -> Tensor:
            return torch._int_mm(tokens, w[0].t())

        some = ends(m, device)
        expected = tokens[some].double() @ codes.double().T
        name, error, allowed = "_int_mm, product", lambda y: relative(y[some], expected), 0.0
    return Method(name, "torch", lambda: cloned(codes, scale), run, nbytes(codes, scale), error, allowed)


def _grouped_codes(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K], scales and zeros float32 [N * G, 1]: weight = (code - zero) scale."""
    groups = weight.float().view(-1, group_size if group_size > 0 else weight.shape[1])
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / (2**bits - 1)
    zero = (-low / scale).round()
    codes = ((groups / scale).round() + zero).clamp(0, 2**bits - 1).to(torch.uint8)
    return codes.view_as(weight), scale, zero


def _gemlite(n: int, k: int, m: int, bits: int, group_size: int, device: torch.device) -> Method:
    """GemLite's layer (Triton), in bfloat16, as it comes: with the configs that it ships."""
    core = need("gemlite.core")
    if bits not in (1, 2, 4, 8):
        raise NotHere(f"refuses: {bits} bits")
    weight, x = make_weight(n, k, device), _tokens(m, k, device)
    codes, scale, zero = _grouped_codes(weight, bits, group_size)
    kind = core.DType.BF16

    def prepare() -> Any:
        layer = core.GemLiteLinear(
            bits, group_size=group_size, in_features=k, out_features=n, input_dtype=kind, output_dtype=kind
        )
        layer.pack(codes, scale.bfloat16(), zero.bfloat16(), None)
        return layer

    size = n * k * bits // 8 + 2 * nbytes(scale.bfloat16())
    return Method("GemLite", "gemlite", prepare, lambda layer: layer(x), size, _to_float(x, weight), TO_FLOAT[bits])


def _hqq(n: int, k: int, m: int, bits: int, group_size: int, device: torch.device) -> Method:
    """HQQ's layer with torch: it dequantizes the weight and multiplies."""
    quantize = need("hqq.core.quantize")
    weight, x = make_weight(n, k, device), _tokens(m, k, device)
    layer = torch.nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16)
    layer.weight.data.copy_(weight)
    config = quantize.BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)

    def prepare() -> Any:
        return quantize.HQQLinear(
            layer, quant_config=config, compute_dtype=torch.bfloat16, device=str(device), del_orig=False
        )

    size = n * k * bits // 8
    return Method("HQQ", "hqq", prepare, lambda made: made(x), size, _to_float(x, weight), TO_FLOAT[bits])


def _cache(
    backend: str, bits: int, batch: int, heads: int, kv_heads: int, dim: int, tokens: int, device: torch.device
) -> Method:
    """A step of transformers' QuantizedCache, which decodes the whole history, appends a token, and SDPA."""
    need({"quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    transformers = need("transformers")
    cache_utils = need("transformers.cache_utils")
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(hidden_size=heads * dim, **sizes)
    keys, values = (make_history(batch, kv_heads, tokens, dim, device, seed) for seed in (1, 2))
    query = torch.randn(batch, heads, 1, dim, device=device).bfloat16()
    new = keys[:, :, :1].clone()
    expected = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True).double()

    def prepare() -> Any:
        cache = cache_utils.QuantizedCache(backend=backend, config=config, nbits=bits, residual_length=10**9)
        cache.update(keys, values, 0)
        return cache

    def run(cache: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, *cache.update(new, new, 0), enable_gqa=True)

    size = nbytes(keys, values) * bits // 16
    error = lambda out: relative(out, expected)  # noqa: E731
    return Method(f"QuantizedCache, {backend}", "transformers", prepare, run, size, error, 1.0, graph=False)
