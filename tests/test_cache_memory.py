"""What a quantized cache takes in memory, to the byte."""

import pytest
import torch
from cache_programs import HEADS, LONGEST, UnknownLayer, rounded
from tiny_models import tiny_config
from transformers import DynamicCache, StaticCache

from qllm_hf import QllmCache, Scheme
from qllm_hf.cache import cache_nbytes, describe_cache, quantize_cache_
from qllm_hf.kv_rows import KvFormat

pytestmark = pytest.mark.oldest

KV4 = KvFormat(Scheme(kv=4))


def row_bytes(bits, dim, group_size, itemsize, symmetric):
    """Bytes of one token and head: codes without gaps, a scale per group, a byte per zero point, up to a whole word."""
    group = next(size for size in range(min(dim, group_size), 0, -1) if dim % size == 0)
    groups = dim // group
    return -(-dim * bits // 16) * 2 + groups * itemsize + (0 if symmetric else -(-groups // 2) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_memory_is_what_the_formula_says(bits, symmetric, dtype):
    for dim, group_size in ((64, 128), (128, 128), (128, 32), (80, 32), (256, 128), (96, 128), (16, 4)):
        scheme = Scheme(kv=bits, kv_group_size=group_size, kv_symmetric=symmetric)
        cache = quantize_cache_(DynamicCache(), KvFormat(scheme))
        static = StaticCache(config=tiny_config("llama"), max_cache_len=LONGEST)
        quantize_cache_(static, KvFormat(scheme))
        for index in range(2):
            keys = torch.randn(3, HEADS, 7, dim).to(dtype)
            cache.update(keys, keys, index)
            static.update(keys, keys, index)
        row = row_bytes(bits, dim, group_size, dtype.itemsize, symmetric)
        assert cache_nbytes(cache) == 2 * 2 * 3 * HEADS * 7 * row  # layers, K and V, batch, heads, tokens
        assert cache_nbytes(static) == 2 * 2 * 3 * HEADS * LONGEST * row


def test_memory_of_the_usual_case():
    """KV4 with head dim 128 in 16 bits: 4.1875 bits a value, 3.8 times less than float."""
    cache = quantize_cache_(DynamicCache(), KV4)
    keys = torch.randn(1, 4, 100, 128, dtype=torch.bfloat16)
    cache.update(keys, keys, 0)
    assert cache_nbytes(cache) * 8 / (2 * keys.numel()) == 4.1875 + 8 / 128  # the zero point fills a word


def test_latents_keep_their_rotary_part():
    """Multi-head latent attention caches two tensors of different width, of which only the first is quantized."""
    config = tiny_config("deepseek_v3")
    cache = QllmCache(config, "KV4")
    latent, rotary = torch.randn(2, 1, 5, 32), torch.randn(2, 1, 5, 8)
    keys, values = cache.update(latent, rotary, 0)
    assert torch.equal(values, rotary)
    assert torch.equal(keys, rounded(latent, rotary, KvFormat(Scheme(kv=4), keys_only=True))[0])
    assert not torch.equal(keys, latent)
    assert cache_nbytes(cache) == 2 * 5 * (row_bytes(4, 32, 128, 4, False) + 8 * 4)


def test_unknown_layer_in_a_cache():
    cache = DynamicCache(config=tiny_config("llama"))
    cache.layers[1] = UnknownLayer()
    quantize_cache_(cache, KV4)
    assert describe_cache(cache) == {"packed": 1, "simulated": 1, "float": 0}
    for index in range(2):
        cache.update(torch.randn(2, HEADS, 3, 8), torch.randn(2, HEADS, 3, 8), index)
    assert cache_nbytes(cache) == 2 * HEADS * 3 * (2 * row_bytes(4, 8, 128, 4, False) + 2 * 8 * 4)
