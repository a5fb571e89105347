"""What vLLM can be told about keys and values on its command line, and what no exported checkpoint says of them."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import QllmConfig
from ..scheme import FLOAT_BITS, Scheme

KV_CACHE_DTYPES = {4: "int4_per_token_head", 8: "int8_per_token_head"}
"""Bits of keys and values -> vLLM's name for integers of these bits with a scale for each token and head.

8 bits are symmetric there; 4 bits are asymmetric, of keys and values turned by a Hadamard matrix.
Only vLLM's Triton attention, for GPUs, knows them: on a processor the option is accepted, and what is generated has
nothing to do with the prompt. Source: vLLM 0.32, `config/cache.py` and `v1/kv_cache_interface.py`.
"""


def kv_cache_dtype(scheme: Scheme) -> str | None:
    """The value of `vllm serve --kv-cache-dtype` nearest to a scheme's KV bits from above, or None."""
    if scheme.kv == FLOAT_BITS:
        return None
    return next(name for bits, name in KV_CACHE_DTYPES.items() if bits >= scheme.kv)


def lost_words(config: QllmConfig, *, is_float: bool) -> Iterator[str]:
    """Sentences on what a packed checkpoint says and an exported one does not."""
    scheme = config.scheme
    if scheme.a != FLOAT_BITS and is_float:
        yield f"inputs of layers are not quantized: a float checkpoint cannot say A{scheme.a}"
    if scheme.kv != FLOAT_BITS:
        yield (
            f"keys and values are not quantized: no checkpoint format can say KV{scheme.kv} with a grid for each token "
            "and head. vLLM has it on its command line, with grids of its own, for GPUs only: on a processor it takes "
            "the option and computes something else"
        )
    if scheme.kv_rotate_keys:
        yield "keys are not turned before they are quantized"
