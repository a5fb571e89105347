"""The choice, in four sentences.

1. Schemes that do not fit in memory, or that the study says to avoid, are out.
2. Of the rest, those whose expected loss is within the tolerance are left; what is not known is not within it.
3. Of these the one that takes the least memory is chosen; if several take the same, the fastest at decoding, then the
   one that loses least.
4. If none is within the tolerance, the one that loses least is chosen, and said to lose too much; if none fits, there
   is no choice, and the nearest is named with what is missing.

So more memory never means fewer bytes in the choice, and a looser tolerance never means more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .candidates import Candidate


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        chosen: the candidate; None if none fits.
        is_within: whether its expected loss is within the tolerance.
        nearest: if none fits, the one that is least too large.
        missing_bytes: what the memory lacks for `nearest`; 0 if there is a choice.
    """

    chosen: Candidate | None
    is_within: bool
    nearest: Candidate | None = None
    missing_bytes: int = 0


def choose(found: Sequence[Candidate], tolerance: float, memory_bytes: int | None) -> Choice:
    """The one scheme to use among the candidates, for any memory: their own `fits` is not looked at.

    Raises:
        ValueError: there are no candidates at all.
    """
    allowed = [each for each in found if not each.avoided and each.loss.percent is not None]
    fitting = [each for each in allowed if memory_bytes is None or each.total_bytes <= memory_bytes]
    if not fitting:
        nearest = min(allowed, key=_by_bytes)
        return Choice(None, False, nearest, nearest.total_bytes - (memory_bytes or 0))
    within = [each for each in fitting if each.is_within(tolerance)]
    if within:
        return Choice(min(within, key=_by_bytes), True)
    return Choice(min(fitting, key=_by_loss), False)


def _by_bytes(each: Candidate) -> tuple[float, float, float]:
    return each.total_bytes, each.decode_seconds or 0.0, each.loss.percent or 0.0


def _by_loss(each: Candidate) -> tuple[float, float]:
    return each.loss.percent or 0.0, each.total_bytes
