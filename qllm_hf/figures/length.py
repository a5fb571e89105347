"""Long texts: what is lost by their length, and by where in them the answer stands."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..drawing import look
from ..evaluation.record import Record
from ..evaluation.statistics import Estimate, mean
from ..results import BASELINE, Results
from ..sweep.table import percent
from .figure import Figure, Missing

BINS = 10
_SIZED = re.compile(r"(?P<family>.+)_(?P<size>\d+)")
_PLACE = re.compile(r"position (\d+)")


def loss_by_length(results: Results) -> Figure | Missing:
    """Loss of each scheme against the length of the text, for each task that comes in several lengths."""
    title = "What is lost by length"
    panels: dict[str, dict[str, dict[int, Estimate]]] = {}
    for task in results.tasks:
        sized = _SIZED.fullmatch(task)
        if sized is None:
            continue
        for scheme in results.schemes:
            change = None if scheme == BASELINE else results.change(scheme, task)
            if change is not None and change.recovery is not None and change.record.ability == "long":
                lines = panels.setdefault(sized["family"], {})
                lines.setdefault(scheme, {})[int(sized["size"])] = change.recovery
    panels = {
        family: lines for family, lines in panels.items() if len({size for line in lines.values() for size in line}) > 1
    }
    if not panels:
        return Missing(title, "no task was measured in two lengths")
    rows: list[tuple[str, ...]] = [("task", "scheme", "length", "left")]
    for family, lines in panels.items():
        for scheme, line in lines.items():
            rows += [(family, scheme, str(size), percent(kept)) for size, kept in sorted(line.items())]
    caption = (
        "Percent of the float model's score that is lost, by the length that the task's name says (tokens of the "
        "reference model in miniature tasks, lines or keys in the study's). Error bars are one standard error."
    )
    return Figure("length", title, caption, tuple(rows), partial(_draw_lengths, panels))


def score_by_position(results: Results) -> Figure | Missing:
    """Right answers by where in the text they stand, for the longest texts that were asked."""
    title = "Where in a long text answers are lost"
    longest: dict[str, tuple[int, str]] = {}
    for task in results.tasks:
        sized = _SIZED.fullmatch(task)
        if sized is not None and results.record(BASELINE, task) is not None:
            family = sized["family"]
            longest[family] = max(longest.get(family, (0, "")), (int(sized["size"]), task))
    found: dict[str, dict[str, list[Estimate | None]]] = {}
    for _, task in longest.values():
        lines = {}
        for scheme in results.schemes:
            record = results.record(scheme, task)
            places = {} if record is None else _by_place(results, record)
            if len(places) > 1:
                lines[scheme] = [mean(places[place]) if place in places else None for place in range(BINS)]
        if lines:
            found[task] = lines
    if not found:
        return Missing(title, "no task says where in its texts the answers stand")
    names = [f"{place * 100 // BINS}-{(place + 1) * 100 // BINS} %" for place in range(BINS)]
    rows: list[tuple[str, ...]] = [("task", "scheme", *names)]
    for task, lines in found.items():
        rows += [(task, scheme, *map(percent, cells)) for scheme, cells in lines.items()]
    caption = (
        "Right answers in percent, by tenths of the text from its beginning to its end. One cell holds few items: "
        "the table says its standard error."
    )
    return Figure("position", title, caption, tuple(rows), partial(_draw_positions, found, names))


def _by_place(results: Results, record: Record) -> dict[int, list[float]]:
    """{tenth of the text: what its items were worth}."""
    places: dict[int, list[float]] = {}
    for line in results.lines(record):
        value, position = line.get("value"), line.get("position")
        if (tenth := _PLACE.fullmatch(str(line.get("group", "")))) is not None:
            place = int(tenth[1]) - 1
        elif isinstance(position, float):
            place = min(BINS - 1, int(position * BINS))
        else:
            continue
        if isinstance(value, int | float):
            places.setdefault(place, []).append(float(value))
    return places


def _draw_lengths(panels: Mapping[str, Mapping[str, Mapping[int, Estimate]]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(1.8 + 5.2 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    numbers = {scheme: number for number, scheme in enumerate({name: 0 for lines in panels.values() for name in lines})}
    handles: dict[str, Any] = {}
    for axis, (family, lines) in zip(axes, panels.items(), strict=True):
        sizes = sorted({size for line in lines.values() for size in line})
        for scheme, line in lines.items():
            there = [size for size in sizes if size in line]
            handles[scheme] = axis.errorbar(
                there,
                [100 * (1 - line[size].value) for size in there],
                yerr=[0.0 if math.isnan(line[size].stderr) else 100 * line[size].stderr for size in there],
                capsize=2,
                markersize=4,
                linewidth=1.2,
                **look(numbers[scheme]),
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel(family)
        axis.axhline(0, color="#777777", linewidth=1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("lost, % of the float model")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    return figure


def _draw_positions(found: Mapping[str, Mapping[str, list[Estimate | None]]], names: list[str]) -> Any:
    from matplotlib.figure import Figure as Canvas

    most = max(map(len, found.values()))
    figure = Canvas(figsize=(7.6 * len(found), 1.6 + 0.34 * most), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (task, lines) in zip(axes, found.items(), strict=True):
        values = [[math.nan if cell is None else 100 * cell.value for cell in cells] for cells in lines.values()]
        image = axis.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
        for line, cells in enumerate(values):
            for place, value in enumerate(cells):
                if not math.isnan(value):
                    color = "white" if value < 60 else "black"
                    axis.text(place, line, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(BINS), names, fontsize=7, rotation=40, ha="right")
        axis.set_yticks(range(len(lines)), list(lines), fontsize=8)
        axis.tick_params(length=0)
        axis.set_title(task, fontsize=10)
        figure.colorbar(image, ax=axis, label="right, %", pad=0.02)
    return figure
