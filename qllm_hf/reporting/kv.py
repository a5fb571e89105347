"""What a token takes in the KV cache of any architecture, found by asking it.

Formulas from a config miss what architectures do: grouped heads, latents, layers that share, slide or have no
attention at all. So a twin of the model without weights, on the meta device, runs a forward of two tokens
and the cache it leaves behind is measured; then it is quantized by the same code that quantizes real caches,
and measured again. This takes no memory and about a second.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..cache import cache_nbytes, kv_format_of, quantize_cache_
from ..cache_layers import QuantizedKvLayer
from ..families import family
from ..nn import expert_parameters
from ..scheme import Scheme
from .values import KvLayers, KvReport

TOKENS = 2


def kv_report(model: PreTrainedModel, scheme: Scheme) -> KvReport:
    """Bytes per token of the KV cache of a model, on any device and quantized or not, under a scheme.

    An architecture that cannot run without weights, or keeps a cache of its own, gives a report that says so.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return KvReport(scheme.kv, False, (), 0, "an encoder-decoder, whose caches are left alone")
    kv_format = kv_format_of(model.config, scheme)
    try:
        cache = cache_on_meta(model)
        if cache is None:
            has_none = family(model.config.get_text_config(decoder=True).model_type).kv == "none"
            return KvReport(scheme.kv, False, (), 0, "" if has_none else "the model keeps a cache of its own kind")
        shapes = [_shape(layer) for layer in cache.layers]
        before = [_bytes_per_token(layer) for layer in cache.layers]
        if kv_format is not None:
            quantize_cache_(cache, kv_format)
    except Exception as error:  # any code of any architecture runs here; the reason is handed on
        reason = str(error).strip().split("\n")[0]
        return KvReport(scheme.kv, False, (), 0, f"the architecture does not run without weights ({reason})")
    sums: dict[tuple[Any, ...], list[int]] = {}
    for layer, shape, size in zip(cache.layers, shapes, before, strict=True):
        if shape is not None:
            total = sums.setdefault((*shape, _storage(layer)), [0, 0, 0])
            for place, value in enumerate((1, size, _bytes_per_token(layer))):
                total[place] += value
    groups = tuple(
        KvLayers(count, heads, key_dim, value_dim, window, storage, old, new)
        for (heads, key_dim, value_dim, window, storage), (count, old, new) in sums.items()
    )
    keys_only = kv_format is not None and kv_format.keys_only
    return KvReport(scheme.kv, keys_only, groups, sum(shape is None for shape in shapes))


def cache_on_meta(model: PreTrainedModel) -> Cache | None:
    """The cache that a forward of two tokens leaves behind in a model like this one, or None if there is none.

    All tensors are on the meta device: they have shapes and no content.
    """
    twin = twin_on_meta(model)
    for module in twin.modules():
        if expert_parameters(module) or type(module).__name__.endswith("Experts"):
            module.forward = _same_shape  # which experts run depends on values, and there are none
    twin.config.pad_token_id = None  # or some models look for it in the prompt, which has no content
    with torch.no_grad():
        output = twin(torch.zeros(1, TOKENS, dtype=torch.long, device="meta"), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    return cache if isinstance(cache, Cache) else None


def twin_on_meta(model: PreTrainedModel) -> PreTrainedModel:
    """A float model of the same class, config and dtype on the meta device: shapes without weights."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        # fused attention kernels do not run on the meta device
        twin: PreTrainedModel = type(model)._from_config(config, attn_implementation="eager", dtype=model.dtype)
    return twin.eval()  # type: ignore[no-any-return]


def _same_shape(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.empty_like(hidden_states)


def _shape(layer: Any) -> tuple[int, int, int, int | None] | None:
    """Heads, key_dim, value_dim and window of a cache layer, or None if it holds no keys and values."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or keys.dim() != 4:
        return None
    window = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
    return keys.shape[1], keys.shape[-1], values.shape[-1], window


def _bytes_per_token(layer: Any) -> int:
    return cache_nbytes(Cache(layers=[layer])) // TOKENS


def _storage(layer: Any) -> str:
    if not isinstance(layer, QuantizedKvLayer):
        return "float"
    return "packed" if layer.is_packed else "simulated"
