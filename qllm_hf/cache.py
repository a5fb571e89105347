"""Quantized KV caches: QllmCache, and the upgrade of whatever cache a model is given."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .cache_layers import PackedLayer, QuantizedKvLayer, quantize_layer
from .compat import SELF_QUANTIZING_LAYERS
from .errors import CacheError, QllmWarning
from .families import family
from .kv_rows import KvFormat
from .scheme import FLOAT_BITS, Scheme

_MARK = "_qllm_kv_format"


def quantize_cache_(cache: Any, kv_format: KvFormat) -> Any:
    """Make a transformers cache hold quantized keys and values, in place; the same object comes back.

    Layers are exchanged one by one, so references to the cache, its type and its options (offloading, static sizes,
    recording of the past) stay as they are. Does nothing the second time.

    Raises:
        CacheError: the cache quantizes on its own, is of another KV format, or is no transformers cache.
    """
    current = getattr(cache, _MARK, None)
    if current is not None:
        if current != kv_format:
            raise CacheError(
                f"this cache holds {current}, the model quantizes {kv_format}. Give generate a fresh cache, or none."
            )
        return cache
    if isinstance(cache, EncoderDecoderCache):
        warnings.warn(
            "encoder-decoder caches are not quantized: keys and values stay in floating point.",
            QllmWarning,
            stacklevel=2,
        )
        setattr(cache, _MARK, kv_format)
        return cache
    if not isinstance(cache, Cache):
        raise CacheError(
            f"KV quantization needs a transformers Cache, this model was given a {type(cache).__name__}. "
            "Leave past_key_values out, or give a DynamicCache or StaticCache."
        )
    for layer in cache.layers:
        if isinstance(layer, SELF_QUANTIZING_LAYERS):
            raise CacheError(
                f"the cache's {type(layer).__name__} quantizes keys and values on its own, on top of {kv_format}. "
                "Leave out cache_implementation='quantized', or load the model without KV bits."
            )
    cache.layers = [quantize_layer(layer, kv_format) for layer in cache.layers]
    if cache.layer_class_to_replicate is not None:
        grow: Any = functools.partial(_new_layer, cache.layer_class_to_replicate, kv_format)
        cache.layer_class_to_replicate = grow
    setattr(cache, _MARK, kv_format)
    return cache


def _new_layer(layer_class: Any, kv_format: KvFormat) -> Any:
    return quantize_layer(layer_class(), kv_format)


def kv_format_of(config: PreTrainedConfig, scheme: Scheme) -> KvFormat | None:
    """How models of this config cache keys and values under a scheme, or None where nothing is quantized."""
    text_config = config.get_text_config(decoder=True)
    kind = family(text_config.model_type).kv
    if scheme.kv == FLOAT_BITS or kind == "none":
        return None
    return KvFormat(scheme, keys_only=kind == "keys")


class QllmCache(DynamicCache):
    """A growing KV cache of quantized keys and values, for any decoder-only model, quantized or not.

    A model loaded with KV bits makes its own; this one is for a float model, or for filling a cache by hand.

    Args:
        config: the model's config.
        scheme: a scheme with KV bits, such as "KV4".
        options: those of transformers' DynamicCache, such as offloading.

    Raises:
        CacheError: the scheme has no KV bits, or the model has no keys and values.
    """

    def __init__(self, config: PreTrainedConfig, scheme: str | Scheme, **options: Any) -> None:
        scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
        kv_format = kv_format_of(config, scheme)
        if kv_format is None:
            if scheme.kv == FLOAT_BITS:
                raise CacheError(f"scheme {scheme} leaves the KV cache at 16 bits. Give KV bits, such as KV8 or W4KV4.")
            raise CacheError(f"{config.model_type} models have no keys and values to quantize.")
        super().__init__(config=config, **options)
        quantize_cache_(self, kv_format)


def cache_nbytes(cache: Cache) -> int:
    """Bytes of all keys and values that a cache holds, packed or not; states of linear attention not counted."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, PackedLayer):
            total += layer.nbytes()
        else:
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                total += tensor.numel() * tensor.element_size() if tensor is not None else 0
    return total


def describe_cache(cache: Cache) -> dict[str, int]:
    """How many layers hold packed rows, simulate the quantization, or hold floats (no KV, or unquantized)."""
    counts = {"packed": 0, "simulated": 0, "float": 0}
    for layer in cache.layers:
        kind = "float"
        if isinstance(layer, QuantizedKvLayer):
            kind = "packed" if layer.is_packed else "simulated"
        counts[kind] += 1
    return counts
