"""Random cases that compare every implementation with float64, by kind; `fuzz_numbers.py` draws them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .codes import rows, weights
from .histories import attention, halves
from .models import model
from .outcome import Outcome
from .products import experts, layer, linear

Kind = Callable[[random.Random], Iterator[Outcome]]

KINDS: dict[str, Kind] = {
    "weights": weights,
    "rows": rows,
    "linear": linear,
    "experts": experts,
    "layer": layer,
    "attention": attention,
    "halves": halves,
    "model": model,
}

__all__ = ["KINDS", "Kind", "Outcome"]
