"""Allocation of bits: against all combinations where there are few, and within the budget where there are many."""

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf import ConfigError
from qllm_hf.budget import Choice, allocate

BITS = (2, 3, 4, 8)


def layer(elements: int, costs: tuple[float, ...]) -> tuple[Choice, ...]:
    return tuple(Choice(bits, bits * elements, cost) for bits, cost in zip(BITS, costs, strict=True))


def total(layers: dict[str, tuple[Choice, ...]], bits: dict[str, int], value: str) -> float:
    return sum(getattr(choice, value) for name in layers for choice in layers[name] if choice.bits == bits[name])


def best_of_all(layers: dict[str, tuple[Choice, ...]], budget: float) -> float:
    costs = [
        sum(choice.cost for choice in combination)
        for combination in itertools.product(*layers.values())
        if sum(choice.size for choice in combination) <= budget
    ]
    return min(costs)


falling = st.lists(st.floats(0, 10), min_size=4, max_size=4).map(lambda costs: tuple(sorted(costs, reverse=True)))


@given(st.lists(st.tuples(st.integers(1, 40), falling), min_size=1, max_size=5), st.floats(2, 9))
def test_no_combination_is_better(parts, bits_per_weight):
    layers = {str(index): layer(elements, costs) for index, (elements, costs) in enumerate(parts)}
    elements = sum(elements for elements, _ in parts)
    budget = bits_per_weight * elements
    chosen = allocate(layers, budget, elements)
    assert total(layers, chosen, "size") <= budget
    assert total(layers, chosen, "cost") == pytest.approx(best_of_all(layers, budget), abs=1e-9)


def test_a_worse_choice_would_be_noticed():
    layers = {"a": layer(10, (9.0, 1.0, 0.5, 0.0)), "b": layer(10, (2.0, 1.2, 1.0, 0.0))}
    chosen = allocate(layers, 60, 20)
    assert chosen == {"a": 3, "b": 3}
    assert total(layers, {"a": 2, "b": 4}, "cost") > total(layers, chosen, "cost")


def test_costs_that_rise_with_bits_by_chance_cost_no_bits():
    assert allocate({"a": layer(10, (1.0, 0.2, 0.3, 0.4))}, 1000, 10)["a"] in (3, 4, 8)
    noisy = {"a": layer(10, (1.0, 0.2, 0.3, 0.4)), "b": layer(10, (1.0, 0.9, 0.1, 0.0))}
    assert total(noisy, allocate(noisy, 70, 20), "cost") == pytest.approx(0.3)


def test_more_than_the_largest_gives_the_largest():
    layers = {"a": layer(7, (3.0, 2.0, 1.0, 0.0)), "b": layer(5, (3.0, 2.0, 1.0, 0.0))}
    assert allocate(layers, 1e9, 12) == {"a": 8, "b": 8}


def test_less_than_the_smallest_is_an_error_that_says_how_much_is_needed():
    with pytest.raises(ConfigError, match=r"budget is 1\.500 bits per weight, and .* takes 2\.000"):
        allocate({"a": layer(10, (1.0, 0.5, 0.2, 0.0))}, 15, 10)


def test_a_large_model_takes_seconds_and_stays_within_its_budget():
    layers = {
        str(index): layer(1_000_003 + 17 * index, tuple(math.exp(-bits) * (1 + index % 7) for bits in BITS))
        for index in range(1000)
    }
    elements = sum(choices[0].size // 2 for choices in layers.values())
    begin = time.perf_counter()
    chosen = allocate(layers, 3.3 * elements, elements)
    used = total(layers, chosen, "size") / elements
    assert 3.25 < used <= 3.3
    assert time.perf_counter() - begin < 30
