"""The published speed-up of 4-bit weights that is nearest to what was run here."""

from __future__ import annotations

import math
from typing import Final

from ..published.speedups import Speedup, speedups
from ..scheme import FLOAT_BITS, Scheme
from .cells import Case
from .ratios import STAGES

PUBLISHED_BITS: Final = 4
"""Of the weights in the survey's table; nothing else is quantized there."""


def is_published_scheme(scheme: str) -> bool:
    """Whether the survey's table is about a scheme: 4-bit weights, all else in floating point."""
    parsed = Scheme.parse(scheme)
    return (parsed.w, parsed.a, parsed.kv) == (PUBLISHED_BITS, FLOAT_BITS, FLOAT_BITS)


def nearest(case: Case, params: int) -> dict[str, dict[str, Speedup]]:
    """{framework: {stage: published cell}} of the model, batch and input nearest to a case, as factors go."""

    def distance(cell: Speedup) -> tuple[float, ...]:
        pairs = ((cell.params_b * 1e9, params), (cell.batch, case.batch), (cell.input_tokens, case.input))
        return tuple(abs(math.log(one / other)) for one, other in pairs)

    found: dict[str, dict[str, Speedup]] = {}
    for framework in dict.fromkeys(cell.framework for cell in speedups()):
        of_it = [cell for cell in speedups() if cell.framework == framework]
        found[framework] = {
            stage: min((cell for cell in of_it if cell.stage == stage), key=distance) for stage in STAGES.values()
        }
    return found
