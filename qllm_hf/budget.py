"""Which layer gets how many bits, so that they cost no more than a budget and hurt as little as they can.

A multiple-choice knapsack: each layer has several bit-widths, each with a size and a cost. Solved by dynamic
programming over sizes, which is exact while their common divisor is not too small a part of the budget, and else
rounds sizes up, so that the budget holds all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError

RESOLUTION = 20_000
"""Steps that a budget is cut into where sizes have no larger common divisor."""


@dataclass(frozen=True)
class Choice:
    """One bit-width of one layer.

    Attributes:
        bits: of the weights.
        size: stored bits of the layer, scales and zero points included.
        cost: what it does to the model, in any unit that may be added up.
    """

    bits: int
    size: int
    cost: float


def allocate(layers: Mapping[str, tuple[Choice, ...]], budget: float, elements: int) -> dict[str, int]:
    """Bits of each layer: the least total cost among all choices whose sizes add up to `budget` bits at most.

    A measured cost may rise with bits by chance; more bits then count as no worse than fewer.

    Args:
        elements: number of all weights, for the message.

    Raises:
        ConfigError: the smallest choices are larger than the budget.
    """
    choices = {name: _monotone(options) for name, options in layers.items()}
    least = sum(options[0].size for options in choices.values())
    if least > budget:
        raise ConfigError(
            f"the budget is {budget / elements:.3f} bits per weight, and the smallest choice of every layer takes "
            f"{least / elements:.3f}, scales and zero points included. Give more, or a larger w_group_size."
        )
    room = budget - least
    extra = {name: [option.size - options[0].size for option in options] for name, options in choices.items()}
    step = math.gcd(*(size for sizes in extra.values() for size in sizes)) or 1
    if room / step > RESOLUTION:
        step = max(step, math.ceil(room / RESOLUTION))
    units = int(room // step)
    best = np.zeros(units + 1)  # least cost of the layers so far, by units used at most
    taken = []
    for name, options in choices.items():
        total = np.full(units + 1, np.inf)
        choice = np.zeros(units + 1, dtype=np.uint8)
        for index, (option, size) in enumerate(zip(options, extra[name], strict=True)):
            need = -(-size // step)
            if need > units:
                continue
            costs = best[: units + 1 - need] + option.cost
            better = costs < total[need:]
            total[need:][better] = costs[better]
            choice[need:][better] = index
        best = total
        taken.append(choice)
    left, bits = units, {}
    for (name, options), choice in zip(reversed(list(choices.items())), reversed(taken), strict=True):
        index = int(choice[left])
        bits[name] = options[index].bits
        left -= -(-extra[name][index] // step)
    return {name: bits[name] for name in layers}


def _monotone(options: tuple[Choice, ...]) -> list[Choice]:
    """In order of size, each costing no more than the one before."""
    ordered = sorted(options, key=lambda option: option.size)
    found: list[Choice] = []
    for option in ordered:
        cost = min(option.cost, found[-1].cost) if found else option.cost
        found.append(Choice(option.bits, option.size, cost))
    return found
