"""What is left of each ability under each scheme: a heat map, and small radars with the same axes for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..evaluation.record import ABILITIES
from ..evaluation.statistics import Estimate
from ..results import BASELINE, Results
from ..sweep.table import percent
from .figure import Figure, Missing

_LEAST_AXES = 3
_RADARS_PER_LINE = 4


def heat_map(results: Results) -> Figure | Missing:
    """Ability x scheme, in percent of the float model."""
    title = "Abilities that are left"
    schemes = [scheme for scheme in results.schemes if scheme != BASELINE]
    kept = {scheme: results.recovery(scheme) for scheme in schemes}
    columns = [ability for ability in ABILITIES if any(ability in kept[scheme] for scheme in schemes)]
    if not columns:
        return Missing(title, f"no scheme was measured next to {BASELINE} on a task it can do")
    return _heat_map("abilities", title, schemes, columns, lambda scheme, ability: kept[scheme].get(ability))


def task_heat_map(results: Results) -> Figure | Missing:
    """Task x scheme, in percent of the float model."""
    title = "Tasks that are left"
    schemes = [scheme for scheme in results.schemes if scheme != BASELINE]

    def kept(scheme: str, task: str) -> Estimate | None:
        change = results.change(scheme, task)
        return None if change is None else change.recovery

    columns = [task for task in results.tasks if any(kept(scheme, task) for scheme in schemes)]
    if not columns:
        return Missing(title, f"no scheme was measured next to {BASELINE} on a task it can do")
    return _heat_map("tasks", title, schemes, columns, kept)


def radars(results: Results) -> Figure | Missing:
    """A radar for each scheme, from 0 to 100 % of the float model on every axis."""
    return radars_of({scheme: results.recovery(scheme) for scheme in results.schemes if scheme != BASELINE})


def radars_of(kept: Mapping[str, Mapping[str, Estimate]]) -> Figure | Missing:
    """The same for numbers that come from elsewhere, {scheme: {ability: part that is left}}."""
    title = "Abilities at a glance"
    axes = [ability for ability in ABILITIES if all(ability in found for found in kept.values())]
    if not kept or len(axes) < _LEAST_AXES:
        return Missing(title, f"a radar needs {_LEAST_AXES} abilities that were measured under all schemes")
    rows = [("scheme", *axes), *((scheme, *(percent(found[name]) for name in axes)) for scheme, found in kept.items())]
    caption = (
        "Each axis goes from 0 to 100 % of the float model's score above guessing (the grey line), for all schemes "
        "alike. The band is one standard error."
    )
    return Figure("radar", title, caption, tuple(rows), partial(_draw_radars, kept, axes))


def _heat_map(
    name: str,
    title: str,
    schemes: Sequence[str],
    columns: Sequence[str],
    kept: Callable[[str, str], Estimate | None],
) -> Figure:
    cells = {(scheme, column): kept(scheme, column) for scheme in schemes for column in columns}
    rows = [("scheme", *columns)]
    rows += [(scheme, *(percent(cells[scheme, column]) for column in columns)) for scheme in schemes]
    caption = (
        "Percent of the float model's score above guessing that is left, with its standard error (items compared one "
        "by one). The colours are fixed: 0 is guessing, 100 the float model. A dash was not measured, or the float "
        "model does no better than guessing."
    )
    return Figure(name, title, caption, tuple(rows), partial(_draw_heat_map, schemes, columns, cells))


def _draw_heat_map(
    schemes: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], Estimate | None]
) -> Any:
    from matplotlib.figure import Figure as Canvas

    wide = len(columns) > len(ABILITIES)
    figure = Canvas(
        figsize=(1.8 + (0.72 if wide else 1.15) * len(columns), 1.4 + 0.36 * len(schemes)), layout="constrained"
    )
    axis = figure.subplots()
    values = [[_value(cells[scheme, column]) for column in columns] for scheme in schemes]
    image = axis.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    for line, scheme in enumerate(schemes):
        for place, column in enumerate(columns):
            estimate = cells[scheme, column]
            shown = percent(estimate) if not wide else "-" if estimate is None else f"{100 * estimate.value:.0f}"
            dark = estimate is not None and estimate.value < 0.6
            axis.text(place, line, shown, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(columns)), columns, rotation=60 if wide else 0, ha="right" if wide else "center")
    axis.set_yticks(range(len(schemes)), schemes)
    axis.tick_params(length=0)
    figure.colorbar(image, ax=axis, label="% of the float model", pad=0.02)
    return figure


def _value(estimate: Estimate | None) -> float:
    return math.nan if estimate is None else 100 * estimate.value


def _draw_radars(kept: Mapping[str, Mapping[str, Estimate]], axes: Sequence[str]) -> Any:
    from matplotlib.figure import Figure as Canvas

    columns = min(_RADARS_PER_LINE, len(kept))
    lines = -(-len(kept) // columns)
    figure = Canvas(figsize=(2.9 * columns, 2.75 * lines), layout="constrained")
    angles = [2 * math.pi * number / len(axes) for number in range(len(axes))]
    around = [*angles, angles[0]]
    for number, (scheme, found) in enumerate(kept.items()):
        axis: Any = figure.add_subplot(lines, columns, number + 1, projection="polar")
        axis.set_theta_offset(math.pi / 2)
        axis.set_theta_direction(-1)
        axis.set_ylim(0, 110)
        axis.set_yticks([25, 50, 75, 100], ["", "50", "", "100"], fontsize=6, color="#555555")
        axis.set_xticks(angles, axes, fontsize=8)
        axis.tick_params(axis="x", pad=6)
        axis.plot(around, [100] * len(around), color="#777777", linewidth=1)
        middle = [100 * found[name].value for name in axes]
        errors = [0.0 if math.isnan(found[name].stderr) else 100 * found[name].stderr for name in axes]
        low = [max(0.0, value - error) for value, error in zip(middle, errors, strict=True)]
        high = [min(110.0, value + error) for value, error in zip(middle, errors, strict=True)]
        axis.fill_between(around, [*low, low[0]], [*high, high[0]], color="#0072b2", alpha=0.3, linewidth=0)
        axis.plot(around, [*middle, middle[0]], color="#0072b2", linewidth=1.4, marker="o", markersize=3)
        axis.set_title(scheme, fontsize=10, pad=10)
    return figure
