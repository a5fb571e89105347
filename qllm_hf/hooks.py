"""Where KV quantization enters a model: forward pre-hooks, nothing patched.

* On the decoder: a forward that wants a cache gets a quantized one, and a cache that comes in (from the user
  or from `generate`) is upgraded in place.
* On each attention module: a forward without a cache (scoring, training) still has keys and values. It gets
  an ephemeral cache whose `update` hands back the quantized K and V and stores nothing. A cache that the
  decoder hook never saw is upgraded here.

Without the second, log-likelihood tasks would never see KV quantization. It sits on the attention rather
than the decoder because masks are built differently when a decoder is given a cache.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from .cache import kv_format_of, quantize_cache_
from .cache_layers import simulate
from .errors import ModelError, QllmWarning
from .kv_rows import KvFormat
from .scheme import FLOAT_BITS, Scheme

LAYER_NUMBERS = ("layer_idx", "layer_id")
CACHE_ARGUMENTS = ("past_key_values", "layer_past", "past_key_value")
STATE_ARGUMENTS = ("cache_params",)


class EphemeralCache(Cache):
    """Stands in where there is no cache: quantizes what passes through, stores nothing."""

    def __init__(self, kv_format: KvFormat) -> None:
        super().__init__(layers=[])
        self._qllm_kv_format = kv_format

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The quantized key_states and value_states [B, H, T, D]."""
        return simulate(key_states, value_states, self._qllm_kv_format)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: nothing is stored."""
        return 0


class DecoderHook:
    """Forward pre-hook of the decoder: the cache it works with is quantized."""

    def __init__(self, kv_format: KvFormat, names: list[str]) -> None:
        self.kv_format, self.names = kv_format, names

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(args) > self.names.index("past_key_values"):
            kwargs = {**dict(zip(self.names, args, strict=False)), **kwargs}
            args = ()
        cache = kwargs.get("past_key_values")
        if cache is not None:
            quantize_cache_(cache, self.kv_format)
        else:
            use_cache = kwargs.get("use_cache")
            use_cache = getattr(module.config, "use_cache", False) if use_cache is None else use_cache
            if use_cache and not (module.training and getattr(module, "gradient_checkpointing", False)):
                fresh = DynamicCache(config=module.config.get_text_config(decoder=True))
                kwargs = {**kwargs, "past_key_values": quantize_cache_(fresh, self.kv_format)}
        return args, kwargs


class AttentionHook:
    """Forward pre-hook of one attention module: without a cache, keys and values are quantized all the same."""

    def __init__(self, kv_format: KvFormat, argument: str, names: list[str]) -> None:
        self.ephemeral, self.argument = EphemeralCache(kv_format), argument
        self.position = names.index(argument)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("key_value_states") is not None:  # cross-attention: these are the encoder's
            return args, kwargs
        positional = len(args) > self.position
        cache = args[self.position] if positional else kwargs.get(self.argument)
        if cache is not None:
            quantize_cache_(cache, self.ephemeral._qllm_kv_format)
        elif positional:
            args = (*args[: self.position], self.ephemeral, *args[self.position + 1 :])
        else:
            kwargs = {**kwargs, self.argument: self.ephemeral}
        return args, kwargs


def attach_kv(model: PreTrainedModel, scheme: Scheme) -> int:
    """Make a model quantize its keys and values wherever they exist; how many attention modules were found.

    Returns 0, with a warning, for architectures without keys and values, and for encoder-decoder models, whose
    caches are left as they are. Replaces what an earlier call attached.

    Raises:
        ModelError: keys and values should exist in this architecture, but no attention module was found.
    """
    detach_kv(model)
    if scheme.kv == FLOAT_BITS:
        return 0
    kv_format = kv_format_of(model.config, scheme)
    if kv_format is None or getattr(model.config, "is_encoder_decoder", False):
        why = "has no keys and values" if kv_format is None else "is an encoder-decoder, whose caches are left alone"
        warnings.warn(f"KV{scheme.kv} has no effect: {model.config.model_type} {why}.", QllmWarning, stacklevel=2)
        return 0
    attentions = find_attentions(model)
    if not attentions:
        raise ModelError(
            f"no attention module with a cache argument ({', '.join(CACHE_ARGUMENTS)}) was found in "
            f"{type(model).__name__}, so {kv_format} would have no effect. Load it without KV bits."
        )
    handles = []
    decoder = find_decoder(model)
    if decoder is not None:
        hook = DecoderHook(kv_format, _parameters(decoder))
        handles.append(decoder.register_forward_pre_hook(hook, with_kwargs=True))
    for module in attentions.values():
        attention_hook = AttentionHook(kv_format, str(_cache_argument(module)), _parameters(module))
        handles.append(module.register_forward_pre_hook(attention_hook, with_kwargs=True))
    model.__dict__["_qllm_kv_handles"] = handles
    return len(attentions)


def detach_kv(model: nn.Module) -> None:
    """Undo `attach_kv`: keys and values stay in floating point again."""
    for handle in model.__dict__.pop("_qllm_kv_handles", ()):
        handle.remove()


def find_decoder(model: PreTrainedModel) -> nn.Module | None:
    """The module that makes or takes the cache: the decoder, or the base model around it."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    candidates = (decoder, getattr(model, model.base_model_prefix, None), model)
    return next((m for m in candidates if m is not None and _cache_argument(m) == "past_key_values"), None)


def find_attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that write keys and values, by name: the innermost that know their layer's number and take a cache.

    Mixers of state-space and convolution layers do so too, but what they cache are states: their argument has another
    name, or they hold an nn.Conv1d.
    """
    mixers = {
        name: module
        for name, module in model.named_modules()
        if any(getattr(module, number, None) is not None for number in LAYER_NUMBERS)
        and _cache_argument(module, (*CACHE_ARGUMENTS, *STATE_ARGUMENTS))
        and not name.endswith(".indexer")  # selects tokens for the attention around it, which has the keys and values
    }
    outer = {name.rpartition(".")[0] for name in mixers}
    parents = {".".join(name.split(".")[:depth]) for name in outer for depth in range(1, name.count(".") + 2)}
    return {
        name: module
        for name, module in mixers.items()
        if name not in parents
        and _cache_argument(module)
        and not any(isinstance(child, nn.Conv1d) for child in module.children())
    }


def _parameters(module: nn.Module) -> list[str]:
    # of the class: tensor parallelism replaces `module.forward` by a function of (*args, **kwargs)
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _cache_argument(module: nn.Module, arguments: tuple[str, ...] = CACHE_ARGUMENTS) -> str | None:
    try:
        names = _parameters(module)
    except (TypeError, ValueError):
        return None
    return next((argument for argument in arguments if argument in names), None)
