"""A sweep as text: while it runs, and when it is done."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from ..evaluation.record import ABILITIES, Record, ability_scores
from ..evaluation.statistics import Estimate
from ..reporting.text import WIDTH, bytes_text, table
from ..results import BASELINE, Results, Size


def running(labels: Sequence[str], tasks: Sequence[str], records: Iterable[Record], failures: Mapping[str, str]) -> str:
    """What is known so far: a line for each scheme, the mean score of each ability, and how many tasks are done."""
    of: dict[str, list[Record]] = {label: [] for label in labels}
    for record in records:
        of[record.scheme].append(record)
    scores = {label: ability_scores(found) for label, found in of.items()}
    shown = [ability for ability in ABILITIES if any(ability in found for found in scores.values())]
    rows = [["", *shown, "tasks"]]
    for label in labels:
        cells = [f"{scores[label][name].value:.3f}" if name in scores[label] else "." for name in shown]
        rows.append([label, *cells, "failed" if label in failures else f"{len(of[label])}/{len(tasks)}"])
    return table(rows, "l" + "r" * (len(rows[0]) - 1), indent=0)


def summary(results: Results) -> str:
    """What each scheme takes, and the part of the float model's score above guessing that it keeps, by ability."""
    rows = summary_rows(results)
    parts = [
        table(rows, "l" + "r" * (len(rows[0]) - 1), indent=0),
        textwrap.fill(_remark(results, rows[0]), WIDTH),
    ]
    return "\n\n".join(parts)


def summary_rows(results: Results, *, coverage: bool = False) -> list[list[str]]:
    """The lines of `summary`, the header first; with the quantized part of the linear weights if it is asked for."""
    recovered = {scheme: results.recovery(scheme) for scheme in results.schemes}
    shown = [ability for ability in ABILITIES if any(ability in found for found in recovered.values())]
    taken = ["bits/weight", "weights", "KV/token", *(["coverage"] if coverage else [])]
    rows = [["", *taken, *shown]]
    for scheme in results.schemes:
        size = results.sizes.get(scheme)
        cells = [""] * len(taken) if size is None else taken_by(size)
        if coverage and size is not None:
            cells.append(f"{size.coverage:.0%}" if size.coverage else "")
        kept = [percent(recovered[scheme].get(ability)) for ability in shown]
        rows.append([scheme, *cells, *(["100"] * len(shown) if scheme == BASELINE else kept)])
    if scores := results.abilities(BASELINE):
        values = [f"{scores[ability].value:.3f}" if ability in scores else "" for ability in shown]
        rows.append([f"{BASELINE} scores", *[""] * len(taken), *values])
    return rows


def taken_by(size: Size) -> list[str]:
    """Bits per weight, bytes of the weights, and of one token in the KV cache."""
    kv = size.kv_bytes_per_token
    return [f"{size.bits_per_weight:.2f}", bytes_text(size.weight_bytes), "?" if kv is None else bytes_text(kv)]


def percent(estimate: Estimate | None) -> str:
    """A part of 1 in percent with its standard error: "98.7±0.4"."""
    if estimate is None:
        return "-"
    error = "" if math.isnan(estimate.stderr) else f"±{100 * estimate.stderr:.1f}"
    return f"{100 * estimate.value:.1f}{error}"


def unchanged(results: Results) -> str:
    """What ±0.0 hides, as a sentence to add; "" where there is none.

    If none of n items changed, up to 3 / n of all may still change: the rule of three, at 95 %.
    """
    zero = [
        change.record.items
        for scheme in results.schemes
        for task in results.tasks
        if scheme != BASELINE
        and (change := results.change(scheme, task)) is not None
        and change.recovery is not None
        and change.recovery.stderr == 0
    ]
    if not zero:
        return ""
    least = min(zero)
    return f" ±0.0: no item changed; of {least} items, up to {3 / least:.1%} may change and not have been seen."


def uneven(results: Results) -> str:
    """Which schemes lack tasks that others have, as a sentence to add: their means are of other tasks; "" if none."""
    measured = {scheme: {record.task for record in results.of(scheme)} for scheme in results.schemes}
    every = set().union(*measured.values())
    lacking: dict[tuple[str, ...], list[str]] = {}
    for scheme, tasks in measured.items():
        if tasks != every:
            lacking.setdefault(tuple(task for task in results.tasks if task not in tasks), []).append(scheme)
    if not lacking:
        return ""
    said = "; ".join(f"{', '.join(schemes)} without {', '.join(tasks)}" for tasks, schemes in lacking.items())
    return f" Means are of different tasks: {said}."


def _remark(results: Results, shown: Sequence[str]) -> str:
    text = (
        f"Abilities: percent of {BASELINE}'s score above guessing that is left, mean over tasks, with its standard "
        "error (items compared one by one). A difference below two standard errors is noise."
    )
    text += unchanged(results) + uneven(results)
    if missing := sorted({record.ability for record in results.records if record.in_ability} - set(shown)):
        text += f" {BASELINE} is not above guessing in {', '.join(missing)}: nothing there could be lost."
    if results.is_partial:
        text += " PARTIAL: only the first items of some tasks were asked."
    return text
