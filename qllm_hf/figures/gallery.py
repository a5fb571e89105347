"""All pictures of a folder of results, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..results import Results
from .abilities import heat_map, radars, task_heat_map
from .bits import loss_by_bits
from .figure import Figure, Missing
from .length import loss_by_length, score_by_position
from .margins import margin_histogram, rank_matrix
from .memory import even_storage, memory_curves

PICTURES: Final[tuple[Callable[[Results], Figure | Missing], ...]] = (
    heat_map,
    radars,
    loss_by_bits,
    even_storage,
    memory_curves,
    loss_by_length,
    score_by_position,
    margin_histogram,
    rank_matrix,
    task_heat_map,
)


def figures_of(results: Results) -> tuple[list[Figure], list[Missing]]:
    """The pictures that these results can give, and those that they cannot, with the reason."""
    made = [make(results) for make in PICTURES]
    return [one for one in made if isinstance(one, Figure)], [one for one in made if isinstance(one, Missing)]
