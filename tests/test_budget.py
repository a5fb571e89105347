"""Allocation of bits: against all combinations where there are few, and within the budget where there are many."""

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf import ConfigError
from qllm_hf import budget as module
from qllm_hf.budget import Choice, allocate

BITS = (2, 3, 4, 8)
# A budget is bits per weight times weights, which may come out as 59.999999999999 where 60 is meant.
ROUNDING = 1 + 1e-9


def layer(elements: int, costs: tuple[float, ...]) -> tuple[Choice, ...]:
    return tuple(Choice(bits, bits * elements, cost) for bits, cost in zip(BITS, costs, strict=True))


def total(layers: dict[str, tuple[Choice, ...]], bits: dict[str, int], value: str) -> float:
    return sum(getattr(choice, value) for name in layers for choice in layers[name] if choice.bits == bits[name])


def best_of_all(layers: dict[str, tuple[Choice, ...]], budget: float) -> float:
    costs = [
        sum(choice.cost for choice in combination)
        for combination in itertools.product(*layers.values())
        if sum(choice.size for choice in combination) <= budget * ROUNDING
    ]
    return min(costs)


def best_by_table(layers: dict[str, tuple[Choice, ...]], budget: int) -> float:
    """Least cost by a table over all sizes up to the budget: slow, and without any bound."""
    best = np.zeros(budget + 1)
    for choices in layers.values():
        after = np.full(budget + 1, np.inf)
        for choice in (choice for choice in choices if choice.size <= budget):
            after[choice.size :] = np.minimum(after[choice.size :], best[: budget + 1 - choice.size] + choice.cost)
        best = after
    return float(best[budget])


falling = st.lists(st.floats(0, 10), min_size=4, max_size=4).map(lambda costs: tuple(sorted(costs, reverse=True)))


@given(st.lists(st.tuples(st.integers(1, 40), falling), min_size=1, max_size=5), st.floats(2, 9))
def test_no_combination_is_better(parts, bits_per_weight):
    layers = {str(index): layer(elements, costs) for index, (elements, costs) in enumerate(parts)}
    elements = sum(elements for elements, _ in parts)
    budget = bits_per_weight * elements
    chosen = allocate(layers, budget, elements)
    assert total(layers, chosen, "size") <= budget * ROUNDING
    assert total(layers, chosen, "cost") == pytest.approx(best_of_all(layers, budget), abs=1e-9)


choices = st.lists(st.tuples(st.integers(1, 60), st.floats(-1, 5)), min_size=1, max_size=6)


@given(st.lists(choices, min_size=1, max_size=25), st.floats(0, 1))
def test_no_allocation_is_better_whatever_sizes_and_costs_are(parts, share):
    layers = {
        str(index): tuple(Choice(bits, size, cost) for bits, (size, cost) in enumerate(part, 2))
        for index, part in enumerate(parts)
    }
    sizes = [[choice.size for choice in choices] for choices in layers.values()]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    budget = least + math.floor(share * (most - least))
    # more bits than those of the least cost may be chosen: the measured rise is chance
    chosen = allocate(layers, budget, 1)
    assert total(layers, chosen, "size") <= budget
    smoothed = {
        name: tuple(
            Choice(one.bits, one.size, min(other.cost for other in choices if other.size <= one.size))
            for one in choices
        )
        for name, choices in layers.items()
    }
    assert total(smoothed, chosen, "cost") == pytest.approx(best_by_table(layers, budget), abs=1e-6)
    left = budget - total(layers, chosen, "size")
    for name, choices in smoothed.items():
        taken = next(one for one in choices if one.bits == chosen[name])
        assert not any(taken.size < one.size <= taken.size + left and one.cost <= taken.cost for one in choices)


def test_a_worse_choice_would_be_noticed():
    layers = {"a": layer(10, (9.0, 1.0, 0.5, 0.0)), "b": layer(10, (2.0, 1.2, 1.0, 0.0))}
    chosen = allocate(layers, 60, 20)
    assert chosen == {"a": 3, "b": 3}
    assert total(layers, {"a": 2, "b": 4}, "cost") > total(layers, chosen, "cost")


def test_costs_that_rise_with_bits_by_chance_cost_no_bits():
    assert allocate({"a": layer(10, (1.0, 0.2, 0.3, 0.4))}, 1000, 10)["a"] in (3, 4, 8)
    noisy = {"a": layer(10, (1.0, 0.2, 0.3, 0.4)), "b": layer(10, (1.0, 0.9, 0.1, 0.0))}
    assert total(noisy, allocate(noisy, 70, 20), "cost") == pytest.approx(0.3)


@pytest.mark.parametrize("costs", [(3.0, 2.0, 1.0, 0.0), (3.0, 0.2, 0.3, 0.4), (1.0, 1.0, 1.0, 1.0)])
def test_more_than_the_largest_gives_the_largest(costs):
    layers = {"a": layer(7, costs), "b": layer(5, costs)}
    assert allocate(layers, 96, 12) == allocate(layers, 1e9, 12) == {"a": 8, "b": 8}


def test_a_budget_that_arithmetic_made_a_little_smaller_still_holds_what_it_means():
    layers = {"a": layer(7, (3.0, 2.0, 1.0, 0.0)), "b": layer(5, (3.0, 2.0, 1.0, 0.0))}
    assert allocate(layers, math.nextafter(24, 0), 12) == {"a": 2, "b": 2}


def test_of_two_choices_of_one_size_the_better_one_is_taken():
    words = (Choice(2, 16, 3.0), Choice(3, 16, 1.0), Choice(4, 16, 2.0), Choice(8, 32, 0.0))
    assert allocate({"a": words, "b": words[::-1]}, 47, 2) == {"a": 3, "b": 3}


def test_room_that_helps_no_layer_is_still_used():
    pairs = {"a": (8, 10.0, 0.0), "b": (6, 7.0, 0.0), "c": (6, 7.0, 0.0), "d": (2, 1.0, 1.0)}
    layers = {name: (Choice(2, 1, low), Choice(3, size, high)) for name, (size, low, high) in pairs.items()}
    assert allocate(layers, 15, 4) == {"a": 2, "b": 3, "c": 3, "d": 3}


def test_no_layers_need_no_bits():
    assert allocate({}, 0, 0) == {}


def test_less_than_the_smallest_is_an_error_that_says_how_much_is_needed():
    with pytest.raises(ConfigError, match=r"budget is 1\.500 bits per weight, and .* takes 2\.000"):
        allocate({"a": layer(10, (1.0, 0.5, 0.2, 0.0))}, 15, 10)


def large() -> dict[str, tuple[Choice, ...]]:
    """1000 layers, a few of which hold most of the weights, as in a mixture of experts; without a common divisor."""
    random, layers = Random(0), {}
    for index in range(1000):
        elements = 10**6 * (1000 if index % 10 == 0 else 1 + index % 7) + index
        harm = elements * random.lognormvariate(0, 1) / 1e9
        choices = {bits: harm * 4**-bits * random.lognormvariate(0, 0.1) for bits in (2, 3, 4, 5, 6, 8)}
        layers[str(index)] = tuple(Choice(bits, bits * elements, cost) for bits, cost in choices.items())
    return layers


def test_a_large_model_leaves_nothing_of_its_budget():
    layers = large()
    elements = sum(choices[0].size // 2 for choices in layers.values())
    chosen = allocate(layers, 3.3 * elements, elements)
    assert 3.2999 < total(layers, chosen, "size") / elements <= 3.3


def test_a_few_of_the_best_allocations_are_followed_where_all_are_too_many(monkeypatch):
    layers = large()
    elements = sum(choices[0].size // 2 for choices in layers.values())
    costs = []
    for few, limit in ((1, 1), (20, 20), (module.FEW, module.LIMIT)):
        monkeypatch.setattr(module, "FEW", few)
        monkeypatch.setattr(module, "LIMIT", limit)
        chosen = allocate(layers, 3.3 * elements, elements)
        assert total(layers, chosen, "size") <= 3.3 * elements
        costs.append(total(layers, chosen, "cost"))
    assert costs[2] <= costs[1] < 1.0001 * costs[2] < costs[0] < 1.02 * costs[2]
