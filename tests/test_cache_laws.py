"""After any program, a quantized cache layer is transformers' own layer of that kind, fed with rounded K and V."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from cache_programs import HEADS, KINDS, LONGEST, Case, Pair, cases, compare, rounded, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from tiny_models import MODELS, float_model, on_one_thread, tiny_config
from transformers import DynamicCache, StaticCache, __version__
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache, QuantizedCache, QuantizedLayer

from qllm_hf import CacheError, QllmCache, QllmWarning, Scheme
from qllm_hf.cache import describe_cache, quantize_cache_
from qllm_hf.cache_layers import QuantizedKvLayer, quantize_layer
from qllm_hf.kv_rows import KvFormat

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

KV4 = KvFormat(Scheme(kv=4))
CASE = Case(KV4, torch.float32, 8, 8, [], 0, 0)
# One random program takes milliseconds; the same ones each time, so that a failure can be repeated.
PROGRAMS = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("kind", KINDS)
@PROGRAMS
@given(case=cases())
def test_any_program(kind, case):
    Pair(KINDS[kind], case).run()


@pytest.mark.parametrize("kind", KINDS)
def test_programs_notice_other_bits(kind):
    """The comparison itself is alive: one bit less in our layer is found."""
    pair = Pair(KINDS[kind], replace(CASE, steps=[("update", 3)]))
    pair.upgrade()
    pair.ours.kv_format = KvFormat(Scheme(kv=3))
    with pytest.raises(AssertionError):
        pair.apply("update", 3)


def test_unknown_layers_are_simulated_and_known_ones_packed():
    kinds = {kind: quantize_layer(make(), KV4).is_packed for kind, make in KINDS.items()}
    assert kinds == {kind: kind != "UnknownLayer" for kind in KINDS}


@pytest.mark.parametrize("kind", ["StaticLayer", "StaticSlidingWindowLayer"])
def test_static_layers_are_written_in_place(kind):
    """Compiled graphs hold on to the addresses."""
    layer = quantize_layer(KINDS[kind](), KV4)
    keys = torch.randn(1, HEADS, 3, 8)
    layer.update(keys, keys)
    addresses = layer._keys.data_ptr(), layer._values.data_ptr(), layer.cumulative_length.data_ptr()
    for tokens in (1, 4, 1):
        layer.update(torch.randn(1, HEADS, tokens, 8), torch.randn(1, HEADS, tokens, 8))
    layer.reset()
    assert (layer._keys.data_ptr(), layer._values.data_ptr(), layer.cumulative_length.data_ptr()) == addresses


def test_crop_with_a_positive_number():
    """Removed in transformers 5.20; before, it gave the length that remains."""
    layer, reference = quantize_layer(DynamicLayer(), KV4), DynamicLayer()
    keys = torch.randn(2, HEADS, 6, 8)
    layer.update(keys, keys)
    reference.update(*rounded(keys, keys, KV4))
    if Version(__version__) >= Version("5.20"):
        for either in (layer, reference):
            with pytest.raises(ValueError, match="positive"):
                either.crop(4)
    else:
        layer.crop(4)
        reference.crop(4)
        assert layer.get_seq_length() == 4
    compare(state(layer), state(reference))


@pytest.mark.parametrize("make", [*KINDS.values()], ids=KINDS)
def test_copy_and_pickle_live_on_alone(make):
    layer = quantize_layer(make(), KV4)
    first, later = torch.randn(2, HEADS, 3, 8), torch.randn(2, HEADS, 2, 8)
    layer.update(first, first)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    before = copy.deepcopy(state(layer))
    for twin in copies:
        twin.update(later, later)
        compare(state(layer), before)
    layer.update(later, later)
    for twin in copies:
        compare(state(twin), state(layer))


def test_keys_and_values_cannot_be_assigned():
    layer = quantize_layer(DynamicLayer(), KV4)
    layer.update(torch.randn(1, HEADS, 3, 8), torch.randn(1, HEADS, 3, 8))
    with pytest.raises(CacheError, match="cannot be assigned"):
        layer.keys = torch.zeros(1, HEADS, 3, 8)


def test_another_dtype_later_is_refused():
    layer = quantize_layer(DynamicLayer(), KV4)
    layer.update(torch.randn(1, HEADS, 3, 8), torch.randn(1, HEADS, 3, 8))
    half = torch.randn(1, HEADS, 1, 8, dtype=torch.float16)
    with pytest.raises(CacheError, match="float16"):
        layer.update(half, half)


# --- whole caches


def fill(cache, layers, *, tokens=3, dim=8, seed=0, kv_format=None):
    """Writes the same tokens into each of the layers that hold K and V; rounded ones with `kv_format`."""
    generator = torch.Generator().manual_seed(seed)
    for index in layers:
        keys, values = (torch.randn(2, HEADS, tokens, dim, generator=generator) for _ in range(2))
        cache.update(*(rounded(keys, values, kv_format) if kv_format else (keys, values)), index)


MAKERS = {
    "DynamicCache": lambda config: DynamicCache(config=config),
    "StaticCache": lambda config: StaticCache(config=config, max_cache_len=LONGEST),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "jamba", "falcon_h1"])
@pytest.mark.parametrize("when", ["empty", "prefilled", "initialized before", "initialized after"])
def test_upgraded_cache(name, make, when):
    """Empty, prefilled, or with its memory allocated in advance: then used as any other."""
    config = tiny_config(name)
    cache, reference = make(config), make(config)
    attention = [i for i, layer in enumerate(cache.layers) if hasattr(layer, "update")]
    if when == "prefilled":
        fill(cache, attention)
        fill(reference, attention, kv_format=KV4)
    shape = (2, HEADS, 8, torch.float32, torch.device("cpu"))
    if when == "initialized before":
        cache.early_initialization(*shape)
    assert quantize_cache_(cache, KV4) is cache
    if when == "initialized after":
        cache.early_initialization(*shape)
    if when.startswith("initialized"):
        reference.early_initialization(*shape)
        compare([state(cache.layers[i]) for i in attention], [state(reference.layers[i]) for i in attention])
    for seed in (1, 2):
        fill(cache, attention, seed=seed, tokens=4)
        fill(reference, attention, seed=seed, tokens=4, kv_format=KV4)
    assert describe_cache(cache) == {
        "packed": len(attention),
        "simulated": 0,
        "float": len(cache.layers) - len(attention),
    }
    for index in attention:
        compare(state(cache.layers[index]), state(reference.layers[index]))
    assert (
        len(cache),
        cache.get_seq_length(),
        cache.get_mask_sizes(1, attention[0]),
        cache.is_compileable,
        cache.is_croppable,
        cache.is_sliding,
        cache.get_max_length(),
    ) == (
        len(reference),
        reference.get_seq_length(),
        reference.get_mask_sizes(1, attention[0]),
        reference.is_compileable,
        reference.is_croppable,
        reference.is_sliding,
        reference.get_max_length(),
    )


@PROGRAMS
@given(order=st.lists(st.integers(0, 4), min_size=1, max_size=8), prefilled=st.integers(0, 3))
def test_cache_that_grows_layer_by_layer(order, prefilled):
    cache, reference = DynamicCache(), DynamicCache()
    fill(cache, range(prefilled))
    fill(reference, range(prefilled), kv_format=KV4)
    quantize_cache_(cache, KV4)
    for seed, index in enumerate(order):
        # a layer beyond the end is created with those before it, which stay empty
        fill(cache, [index], seed=seed)
        fill(reference, [index], seed=seed, kv_format=KV4)
    assert describe_cache(cache)["packed"] == len(cache.layers) == len(reference.layers)
    for layer, expected in zip(cache.layers, reference.layers, strict=True):
        compare(state(layer), state(expected))


@PROGRAMS
@given(steps=st.lists(st.tuples(st.sampled_from(["crop", "reset", "offload", "prefetch"]), st.just(1)), max_size=3))
def test_second_upgrade_changes_nothing(steps):
    cache = DynamicCache(config=tiny_config("llama"))
    fill(cache, range(2))
    quantize_cache_(cache, KV4)
    for operation, number in steps:
        for layer in cache.layers:
            getattr(layer, operation)(*((-number,) if operation == "crop" else ()))
    layers, states = list(cache.layers), copy.deepcopy([state(layer) for layer in cache.layers])
    assert quantize_cache_(cache, KvFormat(Scheme(kv=4))) is cache  # an equal format, not the same object
    assert all(one is other for one, other in zip(cache.layers, layers, strict=True))
    compare([state(layer) for layer in cache.layers], states)


def test_layers_moved_to_another_cache_are_not_quantized_twice():
    cache = quantize_cache_(DynamicCache(config=tiny_config("llama")), KV4)
    fill(cache, range(2))
    other = DynamicCache(config=tiny_config("llama"))
    other.layers = list(cache.layers)
    quantize_cache_(other, KV4)
    assert describe_cache(other) == {"packed": 2, "simulated": 0, "float": 0}
    fill(other, range(2), seed=1)
    reference = DynamicCache(config=tiny_config("llama"))
    fill(reference, range(2), kv_format=KV4)
    fill(reference, range(2), seed=1, kv_format=KV4)
    for layer, expected in zip(other.layers, reference.layers, strict=True):
        compare(state(layer), state(expected))


class OtherQuantizedLayer(QuantizedLayer):
    """A cache layer of transformers' own quantization, without the library that it needs."""

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, q_tensor):
        return q_tensor


def _hqq_or_quanto(backend, library):
    pytest.importorskip(library)
    return QuantizedCache(backend=backend, config=tiny_config("llama"))


def _fake_quantized():
    cache = DynamicCache(config=tiny_config("llama"))
    cache.layers[1] = OtherQuantizedLayer()
    return cache


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_fake_quantized, id="any"),
        pytest.param(lambda: _hqq_or_quanto("hqq", "hqq"), id="hqq"),
        pytest.param(lambda: _hqq_or_quanto("quanto", "optimum.quanto"), id="quanto"),
    ],
)
def test_caches_that_quantize_on_their_own_are_refused_whole(make):
    cache = make()
    with pytest.raises(CacheError, match="on its own"):
        quantize_cache_(cache, KV4)
    assert not any(isinstance(layer, QuantizedKvLayer) for layer in cache.layers), "half of it was exchanged"


@pytest.mark.parametrize(
    "other",
    [
        KvFormat(Scheme(kv=8)),
        KvFormat(Scheme(kv=4, kv_group_size=32)),
        KvFormat(Scheme(kv=4), keys_only=True),
    ],
    ids=str,
)
def test_other_formats_are_refused(other):
    cache = quantize_cache_(DynamicCache(config=tiny_config("llama")), KV4)
    with pytest.raises(CacheError, match="fresh cache"):
        quantize_cache_(cache, other)


@pytest.mark.parametrize("cache", [((torch.zeros(1), torch.zeros(1)),), [torch.zeros(1)], "static"], ids=type)
def test_what_is_no_cache_is_refused(cache):
    with pytest.raises(CacheError, match=type(cache).__name__):
        quantize_cache_(cache, KV4)


def test_encoder_decoder_caches_stay_as_they_are():
    config = tiny_config("llama")
    cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    with pytest.warns(QllmWarning, match="floating point"):
        quantize_cache_(cache, KV4)
    quantize_cache_(cache, KV4)  # says it once
    assert [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers] == layers
    assert {type(layer) for layer in layers} == {DynamicLayer}


def test_offload_of_a_whole_cache():
    """On a machine with one device it is a move to where the tensors are."""
    cache = quantize_cache_(DynamicCache(config=tiny_config("llama")), KV4)
    fill(cache, range(2))
    before = copy.deepcopy([state(layer) for layer in cache.layers])
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    compare([state(layer) for layer in cache.layers], before)


def test_cache_of_ones_own():
    """QllmCache works on a float model, and says when it cannot."""
    model = float_model("llama")
    ids = torch.randint(3, 200, (1, 9))
    quantized = model(ids, past_key_values=QllmCache(model.config, "KV2")).logits
    assert (quantized - model(ids).logits).abs().max() > 0.01
    with pytest.raises(CacheError, match="W4"):
        QllmCache(model.config, "W4")
    with pytest.raises(CacheError, match="mamba"):
        QllmCache(tiny_config("mamba"), "KV4")


def test_states_of_linear_attention_are_left_alone():
    config = tiny_config("mamba")
    cache = quantize_cache_(DynamicCache(config=config), KV4)
    assert describe_cache(cache) == {"packed": 0, "simulated": 0, "float": MODELS["mamba"].options["num_hidden_layers"]}
