"""The models of the study: family, size, and the size that counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SIZE_CLASSES: Final = {
    "below 6B": (0.0, 6.0),
    "6B to 13B": (6.0, 13.0),
    "13B and above": (13.0, float("inf")),
}
"""{class: billions of parameters, from (included) and to (not included)}: the borders at which findings change."""


@dataclass(frozen=True)
class StudyModel:
    """A model of the study.

    Attributes:
        name: "LLaMA2-7B-chat".
        family: "LLaMA2".
        params_b: all parameters, in billions, as its makers round them.
        size_b: the dense size that it behaves like, in billions: a mixture of experts tolerates as little as a dense
            model of one of its experts' size (finding F4), 7 for Mixtral-8x7B.
        active_b: parameters that a token passes, in billions.
    """

    name: str
    family: str
    params_b: float
    size_b: float
    active_b: float

    @property
    def is_moe(self) -> bool:
        """Whether it is a mixture of experts."""
        return self.active_b < self.params_b

    @property
    def size_class(self) -> str:
        """One of `SIZE_CLASSES`, by `size_b`."""
        return size_class(self.size_b)


def size_class(size_b: float) -> str:
    """The name of the class of a dense size in billions of parameters.

    >>> size_class(7), size_class(13)
    ('6B to 13B', '13B and above')
    """
    return next(name for name, (low, high) in SIZE_CLASSES.items() if low <= size_b < high)
