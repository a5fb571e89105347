"""Bounds worked out by hand, and laws that hold for all of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.config import QllmConfig
from qllm_hf.cost.devices import Device, find_device
from qllm_hf.cost.model import KvGroup, ModelCost, cost_of
from qllm_hf.cost.roofline import (
    Efficiency,
    _causal_pairs,
    decode_seconds,
    expected_experts,
    prefill_seconds,
    ratios,
)
from qllm_hf.cost.typical import typical_model
from qllm_hf.cost.work import Work
from qllm_hf.errors import ConfigError

SLOW_MEMORY = Device("slow memory", 10**9, 1.0, 1e30, None, "")
SLOW_CORES = Device("slow cores", 10**9, 1e30, 1.0, 2.0, "")
DENSE = Work(0, 0, 0, 0, lookup_bytes=100, head_products=50, float_products=30, integer_products=0)
COST = ModelCost("FP16", "float16", 1000, 500, 500, (KvGroup(1, 4, None, 3),), 7, DENSE)


@pytest.fixture(scope="module")
def seven():
    """{scheme: cost} of a model of 7 billion parameters."""
    model = typical_model(7).model
    schemes = ("FP16", "W4", "W8A8", "KV4", "W4KV4")
    return {s: cost_of(model, None if s == "FP16" else QllmConfig.from_scheme(s)) for s in schemes}


def test_decoding_reads_weights_but_looked_up_rows_the_cache_and_the_states_twice():
    assert decode_seconds(COST, SLOW_MEMORY, 2, 10) == 1000 - 100 + 2 * 10 * 4 + 2 * 2 * 7


def test_decoding_multiplies_by_all_matrices_and_the_tokens_it_sees():
    # 11 tokens are seen, the new one among them
    assert decode_seconds(COST, SLOW_CORES, 2, 10) == 2 * 2 * (30 + 50 + 3 * 11)


def test_prefill_asks_the_head_once_and_half_of_the_square():
    assert prefill_seconds(COST, SLOW_CORES, 2, 10) == 2 * 2 * (10 * 30 + 50 + 3 * 55)
    assert prefill_seconds(COST, SLOW_MEMORY, 2, 10) == 1000 - 100 + 2 * 10 * 4 + 2 * 7


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(2, 70)))
def test_causal_pairs(tokens, window):
    group = KvGroup(1, 0, window, 0)
    assert _causal_pairs(group, tokens) == sum(min(i, window or i) for i in range(1, tokens + 1))


def test_integers_where_the_device_can():
    cost = replace(COST, work=replace(DENSE, float_products=0, integer_products=30, head_products=0), kv_groups=())
    assert prefill_seconds(cost, SLOW_CORES, 1, 10) == 2 * 10 * 30 / 2
    assert prefill_seconds(cost, replace(SLOW_CORES, integer_rate=None), 1, 10) == 2 * 10 * 30


def test_experts_that_nobody_goes_to_are_not_read():
    work = Work(800, 800, 8, 2, lookup_bytes=0, head_products=0, float_products=0, integer_products=0)
    cost = ModelCost("FP16", "float16", 1000, 500, 500, (), 0, work)
    assert decode_seconds(cost, SLOW_MEMORY, 1, 5) == pytest.approx(200 + 200)
    assert decode_seconds(cost, SLOW_MEMORY, 2, 5) == pytest.approx(200 + 800 * (1 - 0.75**2))
    assert decode_seconds(cost, SLOW_MEMORY, 1000, 5) == pytest.approx(1000)
    assert prefill_seconds(cost, SLOW_MEMORY, 1, 1000) == pytest.approx(1000)


@given(st.integers(1, 256), st.data(), st.integers(1, 500))
def test_expected_experts_are_between_one_tokens_and_all(experts, data, tokens):
    chosen = data.draw(st.integers(1, experts))
    found = expected_experts(experts, chosen, tokens)
    assert chosen - 1e-9 <= found <= experts
    assert found <= expected_experts(experts, chosen, tokens + 1) + 1e-9


def test_weights_of_four_bits_help_decoding_and_not_a_long_prefill(seven):
    device = find_device("A100-80GB")
    found = ratios(seven["W4"], seven["FP16"], device, 1, 2048)
    assert found.prefill == 1  # bound by the same products in floats
    assert 3 < found.decode < 4
    assert found.prefill < found.end_to_end < found.decode
    assert ratios(seven["W8A8"], seven["FP16"], device, 1, 2048).prefill > 1.8


def test_kv_bits_help_where_the_cache_is_large(seven):
    device = find_device("A100-80GB")
    small = ratios(seven["KV4"], seven["FP16"], device, 1, 128).decode
    large = ratios(seven["KV4"], seven["FP16"], device, 64, 2048).decode
    assert 1 < small < 1.02
    assert large > 2.5


def test_the_same_is_one(seven):
    found = ratios(seven["W4"], seven["W4"], find_device("T4"), 4, 100, output=7)
    assert (found.prefill, found.decode, found.end_to_end) == (1, 1, 1)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 64), st.integers(1, 4096))
def test_less_of_the_peak_takes_longer(bandwidth, compute, batch, tokens):
    part = Efficiency(bandwidth, compute)
    for seconds in (prefill_seconds, decode_seconds):
        best = seconds(COST, SLOW_CORES, batch, tokens)
        assert best <= seconds(COST, SLOW_CORES, batch, tokens, part) <= best / min(bandwidth, compute) * (1 + 1e-9)


@pytest.mark.parametrize("values", [{"bandwidth": 0}, {"compute": 1.1}, {"compute": -1}, {"bandwidth": float("nan")}])
def test_parts_that_cannot_be(values):
    with pytest.raises(ConfigError, match="part of the peak"):
        Efficiency(**values)


def test_rates_that_are_not_known(seven):
    half = find_device("M4 Max")  # only its bandwidth is
    assert decode_seconds(seven["FP16"], half, 1, 10) > 13e9 / 546e9
    with pytest.raises(ConfigError, match="neither bandwidth nor rates of this are known"):
        decode_seconds(COST, Device("this", 1, None, None, None, ""), 1, 1)


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (-1, 5), (1, 2.5)])
def test_sizes_that_cannot_be(size):
    for seconds in (prefill_seconds, decode_seconds):
        with pytest.raises(ConfigError, match="give a positive number"):
            seconds(COST, SLOW_CORES, *size)
    with pytest.raises(ConfigError, match="give a positive number"):
        ratios(COST, COST, SLOW_CORES, 1, 1, output=0)
