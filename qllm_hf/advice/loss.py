"""What a scheme is expected to lose, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..published.summary import LossSummary

Kind = Literal["baseline", "measured", "published", "parts", "rule", "none"]


@dataclass(frozen=True)
class Loss:
    """What a scheme is expected to lose in a topic.

    Attributes:
        topic: one of `situation.TOPICS`.
        percent: the loss; None if nothing is known. Of "rule" evidence the study's threshold, an upper bound.
        kind: how it is known.
        what: the benchmark, the models, or the rule.
        summary: of the published losses that `percent` is the median of.
        stderr: of a measured loss, in percent; None where it is not known.
    """

    topic: str
    percent: float | None
    kind: Kind
    what: str
    summary: LossSummary | None = None
    stderr: float | None = None


def overall(losses: tuple[Loss, ...]) -> Loss:
    """The worst of several topics: unknown if one of them is."""
    return max(losses, key=lambda loss: float("inf") if loss.percent is None else loss.percent)
