"""By how much the right choice was preferred: a histogram under each scheme, and whether items keep their order.

The loss of a choice is its nats per token. loss(best wrong choice) - loss(right choice) is positive where the answer is
right. The study draws this histogram for WinoGrande; here it is the first such task of the results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..evaluation.record import Record
from ..evaluation.statistics import mean
from ..results import BASELINE, Results
from .figure import Figure, Missing

PREFERRED = "qllm_winogrande"
BINS = 60
_PANELS_PER_LINE = 4
_LEAST_ITEMS = 10

Margins = dict[Any, float]
"""{item: loss of the best wrong choice - loss of the right one, nats per token}."""


def margin_histogram(results: Results) -> Figure | Missing:
    """The histogram of margins of one task, a panel for each scheme, with the float model's behind it."""
    title = "How clear answers are"
    tasks = sorted(results.tasks, key=lambda task: task != PREFERRED)
    for task in tasks:
        found = {scheme: margins for scheme in results.schemes if (margins := _margins(results, scheme, task))}
        if BASELINE in found and len(found) > 1:
            break
    else:
        return Missing(title, "no task with choices was measured under two schemes, with losses of its choices")
    base = found[BASELINE]
    rows: list[tuple[str, ...]] = [("scheme", "right", "mean margin", "became wrong", "became right", "items")]
    for scheme, margins in found.items():
        both = [item for item in base if item in margins]
        lost = sum(base[item] > 0 >= margins[item] for item in both)
        won = sum(base[item] <= 0 < margins[item] for item in both)
        right = mean([float(margins[item] > 0) for item in both])
        middle = mean([margins[item] for item in both])
        rows.append(
            (
                scheme,
                f"{100 * right.value:.1f}±{100 * right.stderr:.1f} %",
                f"{middle.value:.3f}±{middle.stderr:.3f}",
                str(lost),
                str(won),
                str(len(both)),
            )
        )
    caption = (
        f"{task}: loss of the best wrong choice minus loss of the right one, in nats per token. Right of the line the "
        "answer is right. Grey: the float model. Two schemes with the same score can have changed different answers: "
        "the table counts them."
    )
    return Figure("margins", f"{title}: {task}", caption, tuple(rows), partial(_draw_histograms, found))


def rank_matrix(results: Results) -> Figure | Missing:
    """Spearman's correlation of the margins of the same items under two schemes, mean over tasks with choices."""
    title = "Whether items keep their order"
    by_task = {}
    for task in results.tasks:
        found = {scheme: margins for scheme in results.schemes if (margins := _margins(results, scheme, task))}
        if len(found) == len(results.schemes):
            by_task[task] = found
    if not by_task or len(results.schemes) < 2:
        return Missing(title, "no task with choices was measured under all schemes")
    matrix = []
    for one in results.schemes:
        line = []
        for other in results.schemes:
            values = [spearman(found[one], found[other]) for found in by_task.values()]
            known = [value for value in values if value is not None]
            line.append(sum(known) / len(known) if known else math.nan)
        matrix.append(line)
    rows = [("", *results.schemes)]
    rows += [
        (scheme, *(f"{value:.3f}" for value in line)) for scheme, line in zip(results.schemes, matrix, strict=True)
    ]
    caption = (
        f"Spearman's rank correlation of the items' margins, mean over {len(by_task)} tasks with choices "
        f"({', '.join(by_task)}): 1 means that both schemes find the same items easy and the same items hard."
    )
    return Figure("ranks", title, caption, tuple(rows), partial(_draw_matrix, results.schemes, matrix))


def spearman(one: Mapping[Any, float], other: Mapping[Any, float]) -> float | None:
    """Spearman's rank correlation over the keys that both have, ties at their mean rank; None if one is constant.

    >>> spearman({"a": 1, "b": 2, "c": 9}, {"a": 10, "b": 11, "c": 12})
    1.0
    """
    keys = [key for key in one if key in other]
    if len(keys) < 2:
        return None
    first, second = ranks([one[key] for key in keys]), ranks([other[key] for key in keys])
    middle = (len(keys) + 1) / 2
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in first) * math.fsum((y - middle) ** 2 for y in second))
    if spread == 0:
        return None
    return math.fsum((x - middle) * (y - middle) for x, y in zip(first, second, strict=True)) / spread


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values at the mean of their places."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end + 1 < len(order) and values[order[end + 1]] == values[order[begin]]:
            end += 1
        for place in range(begin, end + 1):
            found[order[place]] = (begin + end) / 2 + 1
        begin = end + 1
    return found


def _margins(results: Results, scheme: str, task: str) -> Margins:
    """The margins of a task's items; {} where it has no choices, or is not decided by losses per token."""
    record = results.record(scheme, task)
    return {} if record is None else _read(results, record)


def _read(results: Results, record: Record) -> Margins:
    found: Margins = {}
    agree = 0
    for line in results.lines(record):
        likelihoods, label = line.get("likelihoods"), line.get("label")
        if not likelihoods or len(likelihoods) < 2 or not isinstance(label, int):
            continue
        losses = [-value / (tokens or 1) for value, tokens in likelihoods]
        margin = min(loss for place, loss in enumerate(losses) if place != label) - losses[label]
        if math.isfinite(margin):
            found[line["id"]] = margin
            agree += (margin > 0) == (line.get("value") == 1.0)
    # a task may compare other losses (sums, whole texts), or mean something else by its label
    return found if len(found) >= _LEAST_ITEMS and agree >= 0.9 * len(found) else {}


def _draw_histograms(found: Mapping[str, Margins]) -> Any:
    from matplotlib.figure import Figure as Canvas

    shown = [scheme for scheme in found if scheme != BASELINE]
    columns = min(_PANELS_PER_LINE, len(shown))
    lines = -(-len(shown) // columns)
    figure = Canvas(figsize=(3.1 * columns, 2.2 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    ends = sorted(abs(value) for margins in found.values() for value in margins.values())
    most = ends[int(0.99 * (len(ends) - 1))] or 1.0
    edges = [most * (2 * number / BINS - 1) for number in range(BINS + 1)]
    for number, axis in enumerate(axes.flat):
        if number >= len(shown):
            axis.set_axis_off()
            continue
        scheme = shown[number]
        inside = [min(max(value, -most), most) for value in found[BASELINE].values()]
        axis.hist(inside, edges, color="#bbbbbb", label=BASELINE)
        inside = [min(max(value, -most), most) for value in found[scheme].values()]
        axis.hist(inside, edges, histtype="step", color="#0072b2", linewidth=1.3)
        axis.axvline(0, color="#d55e00", linewidth=1)
        axis.set_title(scheme, fontsize=9)
    figure.supxlabel("loss(wrong) - loss(right), nats per token", fontsize=9)
    figure.supylabel("items", fontsize=9)
    return figure


def _draw_matrix(schemes: Sequence[str], matrix: Sequence[Sequence[float]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    size = 2.4 + 0.42 * len(schemes)
    figure = Canvas(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
    for line, values in enumerate(matrix):
        for place, value in enumerate(values):
            if not math.isnan(value):
                color = "white" if value < 0.6 else "black"
                axis.text(place, line, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(schemes)), schemes, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(schemes)), schemes, fontsize=8)
    axis.tick_params(length=0)
    figure.colorbar(image, ax=axis, label="Spearman's rank correlation", pad=0.02)
    return figure
