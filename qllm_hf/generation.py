"""Which cache `generate` makes by itself, for a model that quantizes its keys and values.

Transformers makes one that grows, and compiles nothing. On a GPU a step of a few tokens is then mostly Python; with a
static cache transformers compiles it, and attention reads packed rows in the graph. So that is the default there, for
the calls that can have it: each call of `generate` decides for itself, and no config is touched, in memory or on disk.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from qllm_kernels import gpu

from .attention.graph import IS_TRACEABLE
from .attention.registry import DEQUANTIZE, preferred
from .cache import kv_format_of
from .scheme import Scheme

METHOD = "_prepare_cache_for_generation"
"""What transformers calls to make a cache; the model's own attribute of that name hides that of its class."""

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def attach_static_cache(model: PreTrainedModel, scheme: Scheme) -> None:
    """Let `generate` make a static cache where that is faster, if both keys and values are packed at all."""
    detach_static_cache(model)
    kv_format = kv_format_of(model.config, scheme)
    encodes = getattr(model.config, "is_encoder_decoder", False)
    if kv_format is not None and not kv_format.keys_only and not encodes and hasattr(model, METHOD):
        model.__dict__[METHOD] = functools.partial(prepare_cache, model)


def detach_static_cache(model: PreTrainedModel) -> None:
    """Undo `attach_static_cache`."""
    model.__dict__.pop(METHOD, None)


def prepare_cache(
    model: Any,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    generation_mode: GenerationMode,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """As the method of transformers. `generation_config` is the copy that belongs to one call of `generate`."""
    reason = refuses_static(model, model.device.type, generation_config, model_kwargs, generation_mode)
    if reason is None:
        generation_config.cache_implementation = "static"
    return getattr(type(model), METHOD)(model, generation_config, model_kwargs, generation_mode, *args, **kwargs)


def refuses_static(
    model: Any,
    device: str,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    generation_mode: GenerationMode,
) -> str | None:
    """Why `generate` is left to choose its cache, or None where it gets a static one.

    Args:
        model: of transformers, on a device of type `device`.
        generation_config: of this call.
        model_kwargs: what `generate` will give the model.
        generation_mode: greedy, sampling, with beams, assisted, ...
    """
    config = generation_config
    if config.cache_implementation is not None or model_kwargs.get("past_key_values") is not None:
        return "the caller chose a cache"
    if config.use_cache is False or config.disable_compile:
        return "the caller wants no cache, or nothing compiled"
    if generation_mode not in _MODES or getattr(config, "is_assistant", False):
        return "beams and assistants move about in their caches"
    if getattr(config, "prefill_chunk_size", None) is not None:
        return "prompts in chunks would be compiled too"
    if device != "cuda":
        return "transformers compiles nothing on this device"
    missing = gpu.missing()
    if missing is not None:
        return missing
    if not IS_TRACEABLE or preferred() == DEQUANTIZE.name:
        return "compiled graphs decode the history"
    if model.config.get_text_config(decoder=True)._attn_implementation != "sdpa":
        return "another attention than torch's was chosen"
    if not getattr(model, "_can_compile_fullgraph", False) or not model._supports_default_dynamic_cache():
        return "transformers says that this model does not compile, or has a cache of its own"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "the model is on several devices"
    return None
