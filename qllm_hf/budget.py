"""Which layer gets how many bits, so that they cost no more than a budget and hurt as little as they can.

A multiple-choice knapsack: each layer has several bit-widths, each with a size and a cost. A price per stored bit
(Lagrange's multiplier) gives a good allocation and a bound on how much better any other can be. Dynamic programming
over what is left within that bound then finds the best one: after each layer it keeps the allocations so far of which
none is both larger and worse than another. The result is exact unless more than LIMIT of them stay, which takes
hundreds of layers of sizes without a common divisor; then those nearest to the bound are followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError

FEW, LIMIT = 200, 20_000
"""Allocations of the layers so far that are followed at most, in a first and in the last search."""
_ROUNDING = 1e-9
"""Relative: what differs by less is the same number, summed in another order."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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

    A measured cost may rise with bits by chance; more bits then count as no worse than fewer, and are taken where the
    budget has room for them.

    Args:
        elements: number of all weights, for the message.

    Raises:
        ConfigError: the smallest choices are larger than the budget.
    """
    if not layers:
        return {}
    choices = [_monotone(options) for options in layers.values()]
    most = max(map(len, choices))
    padded = [[*options, *[options[-1]] * (most - len(options))] for options in choices]
    size: Ints = np.array([[option.size for option in options] for options in padded], dtype=np.int64)
    cost: Floats = np.array([[option.cost for option in options] for options in padded])
    room = math.floor(budget * (1 + _ROUNDING))
    least = int(size[:, 0].sum())
    if least > room:
        raise ConfigError(
            f"the budget is {budget / elements:.3f} bits per weight, and the smallest choice of every layer takes "
            f"{least / elements:.3f}, scales and zero points included. Give more, or a larger w_group_size."
        )
    price, chosen = _priced(size, cost, room)
    chosen = _filled(size, cost, chosen, room)
    for limit in (FEW, LIMIT):  # a quick search first: the better the known allocation, the fewer are left to look at
        chosen = _filled(size, cost, _improved(size, cost, chosen, room, price, limit), room)
    return {name: options[index].bits for name, options, index in zip(layers, padded, chosen, strict=True)}


def _monotone(options: tuple[Choice, ...]) -> list[Choice]:
    """In order of size, each costing no more than the one before; of one size, only the best."""
    found: list[Choice] = []
    for option in sorted(options, key=lambda option: (option.size, -option.cost, option.bits)):
        cost = min(option.cost, found[-1].cost) if found else option.cost
        if found and found[-1].size == option.size:
            found.pop()
        found.append(Choice(option.bits, option.size, cost))
    return found


def _priced(size: Ints, cost: Floats, room: int) -> tuple[float, Ints]:
    """The least price per stored bit at which the cheapest options [N] fit, and these options: cost + price * size."""

    def cheapest(price: float) -> Ints:
        found: Ints = np.argmin(cost + price * size, axis=1)
        return found

    rows = np.arange(len(size))
    if size[rows, cheapest(0.0)].sum() <= room:
        return 0.0, cheapest(0.0)
    steps = np.maximum(size[:, 1:] - size[:, :1], 1)
    low, high = 0.0, 2 * float(((cost[:, :1] - cost[:, 1:]) / steps).max())
    chosen = np.zeros_like(rows)  # the smallest, which fit
    for _ in range(100):
        middle = (low + high) / 2
        if size[rows, cheapest(middle)].sum() <= room:
            high, chosen = middle, cheapest(middle)
        else:
            low = middle
    return high, chosen


def _filled(size: Ints, cost: Floats, chosen: Ints, room: int) -> Ints:
    """Larger options [N] while they fit and cost no more, those that help most first."""
    chosen, rows = chosen.copy(), np.arange(len(size))
    while True:
        current = size[rows, chosen]
        more = size - current[:, None]
        gain = cost[rows, chosen][:, None] - cost
        gain[(more <= 0) | (more > room - int(current.sum()))] = -np.inf
        row, option = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[row, option] < 0:
            return chosen
        chosen[row] = option


def _improved(size: Ints, cost: Floats, chosen: Ints, room: int, price: float, limit: int) -> Ints:
    """The best options [N] that fit, given good ones and the price at which they were found."""
    rows = np.arange(len(size))
    worst = float(cost[rows, chosen].sum())
    # At this price, each option is so much dearer than the cheapest of its layer. What fits costs at least as much as
    # the cheapest of all layers, less the price of the whole room, plus what its own options are dearer by: where
    # that is more than `gap`, it is no better than what was chosen.
    dearer = cost + price * size
    cheapest = dearer.min(axis=1, keepdims=True)
    dearer -= cheapest
    scale = float(np.abs(cheapest).sum()) + price * room
    gap = worst - (float(cheapest.sum()) - price * room) + _ROUNDING * scale
    # The largest layers first: of those there are few sizes, and the small ones fill what is left.
    order = np.argsort(-size[:, 0], kind="stable")
    smallest_rest = int(size[:, 0].sum())
    used, total, above = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    steps: list[tuple[Ints, Ints]] = []
    for row in order:
        smallest_rest -= int(size[row, 0])
        options = np.unique(size[row], return_index=True)[1]
        options = options[dearer[row, options] <= gap]
        sizes = (size[row, options][:, None] + used).ravel()
        costs = (cost[row, options][:, None] + total).ravel()
        dearers = (dearer[row, options][:, None] + above).ravel()
        kept = np.flatnonzero((sizes + smallest_rest <= room) & (dearers <= gap))
        kept = kept[np.argsort(sizes[kept], kind="stable")]
        least_before = np.minimum.accumulate(np.append(np.inf, costs[kept]))[:-1]
        kept = kept[costs[kept] < least_before]
        kept = kept[np.append(np.diff(sizes[kept]) > 0, True)[: len(kept)]]
        if len(kept) > limit:
            kept = kept[np.sort(np.argpartition(dearers[kept], limit)[:limit])]
        if not len(kept):
            return chosen
        steps.append((kept % len(used), options[kept // len(used)]))
        used, total, above = sizes[kept], costs[kept], dearers[kept]
    if total[-1] >= worst:
        return chosen
    state, best = len(total) - 1, np.zeros_like(chosen)
    for row, (parents, taken) in zip(order[::-1], reversed(steps), strict=True):
        best[row] = taken[state]
        state = int(parents[state])
    return best
