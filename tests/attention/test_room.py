"""What lies behind the tokens of a static cache costs nothing: the kernel does not look at it."""

import pytest
import torch
from compiled_graphs import LENGTH, steps
from tiny_models import float_model, on_one_thread
from transformers import DynamicCache, StaticCache

from qllm_hf import native as library
from qllm_hf import quantize_
from qllm_hf.attention import KvRows, Request, native, prefer
from qllm_hf.cache import quantize_cache_
from qllm_hf.kv_rows import KvFormat, RowFormat
from qllm_hf.scheme import Scheme, Spec

pytestmark = [
    pytest.mark.oldest,
    pytest.mark.skipif(not library.is_there(), reason="the library of CPU kernels is not there"),
]
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
FORM = RowFormat(Spec(4, 32, False), 64, torch.float32)


def request_of(mask, used):
    generator = torch.Generator().manual_seed(0)
    keys, values = (FORM.encode(torch.randn(2, 2, 40, 64, generator=generator)) for _ in range(2))
    query = torch.randn(2, 4, 1, 64, generator=generator)
    return Request(query, KvRows(keys, FORM, used), KvRows(values, FORM, used), mask, False, 0.1)


def spoil(rows, start):
    rows[:, :, start:] = -1  # scales that are no numbers


@pytest.mark.parametrize("kind", ["flags", "numbers"])
def test_the_kernel_reads_what_there_is(kind):
    seen = (torch.arange(40) < 21).expand(2, 1, 1, 40).clone()
    seen[0, ..., :7] = False
    mask = seen if kind == "flags" else torch.where(seen, 0.5, -torch.inf)
    whole, part = request_of(mask, None), request_of(mask, torch.tensor(21))
    expected = native.attend(whole)
    for request in (whole, part):
        spoil(request.keys.rows, 21)
        spoil(request.values.rows, 21)
    torch.testing.assert_close(native.attend(part), expected)
    assert native.attend(whole).isnan().any()


def test_without_a_mask_all_are_seen():
    assert torch.equal(native.attend(request_of(None, torch.tensor(21))), native.attend(request_of(None, None)))


def test_a_mask_of_one_column():
    mask = torch.ones(2, 1, 1, 1, dtype=torch.bool)
    found, whole = native.attend(request_of(mask, torch.tensor(21))), request_of(None, None)
    keys, values = whole.keys.part(0, 21), whole.values.part(0, 21)
    torch.testing.assert_close(found, native.attend(Request(whole.query, keys, values, None, False, 0.1)))


@torch.no_grad()
def test_a_model_never_looks_at_the_room_of_its_cache():
    model = quantize_(float_model("llama"), "KV4")
    expected = steps(model, model, "llama")
    spoiled = []

    def fill(cache):
        for layer in cache.layers:
            spoil(layer._keys, 12)
            spoil(layer._values, 12)
            spoiled.append(int(layer.cumulative_length))

    with prefer("kernel"):
        torch.testing.assert_close(steps(model, model, "llama", fill), expected, atol=2e-5, rtol=0)
    assert spoiled == [12, 12]


def test_which_layers_have_room():
    """Those of a window are full of what is seen, and those that grow have none."""
    x = torch.randn(2, 2, 3, 16)
    for name, static, has_room in (("llama", True, True), ("mistral", True, False), ("llama", False, False)):
        model = float_model(name)
        cache = StaticCache(model.config, max_cache_len=LENGTH) if static else DynamicCache(config=model.config)
        keys, _ = quantize_cache_(cache, KvFormat(Scheme(kv=4))).layers[0].update(x, x)
        used = keys._source.used
        assert (used is not None) == has_room
        assert used is None or int(used) == 3
