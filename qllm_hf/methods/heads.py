"""How many attention heads a model has, by the names that the configs of transformers use."""

from __future__ import annotations

from typing import Any

from .pairs import Heads

_QUERY = ("num_attention_heads", "n_head", "n_heads")
_KV = ("num_key_value_heads", "num_kv_heads")
_SIZE = ("v_head_dim", "head_dim")
_WIDTH = ("hidden_size", "n_embd", "d_model")


def heads_of(config: Any) -> Heads | None:
    """The attention heads of a model, or None where its config does not say."""
    query = _first(config, _QUERY)
    width = _first(config, _WIDTH)
    if not query or not width:
        return None
    kv = _first(config, _KV) or query
    # Falcon's first generation says how many key-value heads it has with a flag
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        kv = 1
    return Heads(kv, query, _first(config, _SIZE) or width // query)


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
