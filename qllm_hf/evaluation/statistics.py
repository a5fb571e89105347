"""Means with their errors, and what is left of a score after quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


def mean(values: Sequence[float]) -> Estimate:
    """The mean and its standard error, s / sqrt(n) with n - 1 degrees of freedom; a single value has no error (nan)."""
    n = len(values)
    middle = math.fsum(values) / n
    if n == 1:
        return Estimate(middle, math.nan)
    return Estimate(middle, math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n))


def normalised(value: float, chance: float, best: float = 1.0) -> float:
    """How far a score is from guessing (0) to perfect (1). Below guessing it is negative, and stays so."""
    return (value - chance) / (best - chance)


def recovery(values: Sequence[float], baseline: Sequence[float], chance: float) -> Estimate | None:
    """The part of a score above chance that is left: max((q - chance) / (fp16 - chance), 0).

    Both runs answered the same items, so their errors go together; the standard error is that of the ratio of two
    paired means (delta method). None if the baseline is not above chance by twice its standard error: then there is
    nothing that could be kept or lost.

    Source: normalised performance of the study (plot_ability.py), with `chance` of each benchmark.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} and {len(baseline)} items cannot be compared one by one")
    now, before = mean(values), mean(baseline)
    base = before.value - chance
    if not base > 2 * (0.0 if math.isnan(before.stderr) else before.stderr):
        return None
    ratio = (now.value - chance) / base
    error = mean([(value - ratio * old) / base for value, old in zip(values, baseline, strict=True)]).stderr
    return Estimate(max(ratio, 0.0), error)


def mean_of_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """sum(numerators) / sum(denominators) and its standard error (delta method): such as nats per word over texts."""
    whole = math.fsum(denominators)
    ratio = math.fsum(numerators) / whole
    scale = whole / len(denominators)
    error = mean([(up - ratio * down) / scale for up, down in zip(numerators, denominators, strict=True)]).stderr
    return Estimate(ratio, error)
