"""What one sequence keeps besides keys and values: states of state-space and linear attention layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..reporting.kv import TOKENS, cache_on_meta, twin_on_meta

_STATES = ("conv_states", "recurrent_states")
_OUTPUTS = ("cache_params", "state")
"""Where models without keys and values hand out what they keep."""


def state_bytes(model: PreTrainedModel) -> int:
    """Bytes of the states of constant size that one sequence keeps, whatever its length; 0 if there are none.

    Measured as keys and values are: a twin without weights runs a forward, and what it leaves behind is counted.
    An architecture that cannot run without weights counts as one without states.
    """
    try:
        cache = cache_on_meta(model)
        if cache is not None:
            return sum(_of_layer(layer) for layer in cache.layers)
        with torch.no_grad():
            ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
            output: Any = twin_on_meta(model)(ids, use_cache=True)
    except Exception:  # any code of any architecture runs here; `kv_report` hands the reason on
        return 0
    kept = next((output[name] for name in _OUTPUTS if output.get(name) is not None), None)
    if isinstance(kept, Cache):
        return sum(_of_layer(layer) for layer in kept.layers)
    return _nbytes(kept)


def _of_layer(layer: Any) -> int:
    return sum(_nbytes(getattr(layer, name, None)) for name in _STATES)


def _nbytes(value: Any) -> int:
    """Bytes of all tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return _nbytes(value.values())
    return sum(map(_nbytes, value)) if isinstance(value, Iterable) and not isinstance(value, str) else 0
