"""What kernels are known to take more of than they should: instructions per element, or registers.

Such a kernel passes its gate up to what stands here, and tables show both numbers. Once it takes no more than it
should, its line here is a fault, so that none stays by accident.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .compiled import Compiled


class Excess(NamedTuple):
    """How much is known, and why.

    Attributes:
        because: the reason, for those who read the table.
        per_element: instructions per element that are reached; None where they are within the budget.
        spills: accesses to spilled registers.
    """

    because: str
    per_element: float | None = None
    spills: int = 0

    def covers(self, compiled: Compiled, budget: float | None) -> bool:
        """Whether a kernel takes no more than is known."""
        most = max(self.per_element or 0, budget or 0)
        return compiled.spills <= self.spills and (budget is None or (compiled.per_element or 0) <= most)


_GROUPS = "every group ends with some operations for each output and token"
_SPILLED = "a few registers short of the 168 that ptxas gives it, 3 and 1 reads of memory in the loop"
_FULL = "the sums of a tile of 128 outputs and 128 tokens leave too few registers"
_WARPS = "the tile is that of Hopper; here warps that differ in tokens only unpack the same codes"

_ODD = "planes of vectors of 100 numbers share no boundary with groups of 25, so that each code finds its own"

EXCESS = {
    ("W4A8 g128, 64 tokens", "cuda:90"): Excess(_GROUPS, 4.4),
    ("W4A8 g128, many tokens", "cuda:90"): Excess(_GROUPS, 6.1),
    ("W4A8 g64, many tokens", "cuda:90"): Excess(_GROUPS, 6.6),
    ("W8A8 g128, many tokens", "cuda:90"): Excess(_GROUPS, 4.7),
    ("experts W4A8 g128 8192 tokens", "cuda:90"): Excess(_GROUPS, 4.5),
    ("KV4 g25, head dim 100", "cuda:89"): Excess(_ODD, spills=12),
    ("W4A8 g128, many tokens", "cuda:89"): Excess(_FULL, spills=14),
    ("W2 bf16 1 tokens", "cuda:80"): Excess(_SPILLED, spills=10),
    ("W2 fp16 1 tokens", "cuda:80"): Excess(_SPILLED, spills=6),
    ("W8 bf16 128 tokens", "cuda:80"): Excess(_WARPS, 29.5),
    ("W8 bf16 128 tokens", "cuda:89"): Excess(_WARPS, 29.5),
    ("W8 fp16 128 tokens", "cuda:80"): Excess(_WARPS, 24.6, spills=72),
    ("W8 fp16 128 tokens", "cuda:89"): Excess(_WARPS, 24.6, spills=42),
}
