"""Scores and sizes as tables in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from ..evaluation.record import ABILITIES, Record, ability_scores
from ..evaluation.registry import find_task
from ..evaluation.statistics import Estimate
from ..reporting.text import bytes_text
from ..reporting.values import Report
from ..results import BASELINE, Change, Size
from ..shown import printable
from .measured import Measured
from .quantized import Quantized

_NAMES = {
    "nlp": "basic NLP",
    "emergent": "emergent",
    "trust": "trustworthiness",
    "dialogue": "dialogue",
    "long": "long",
}
_ACTS = re.compile(r"[\\`*<>\[\]]")
PARTIAL_MARK = "\\*"


def plain(text: str) -> str:
    r"""A name from elsewhere as text of a card: what would be HTML, a link or code is written out.

    >>> print(plain("a_<b>[c]"))
    a_\<b\>\[c\]
    """
    return _ACTS.sub(r"\\\g<0>", printable(text).replace("\n", " "))


def markdown(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows of cells, the first one the heading, as a table; `align` has one letter per column, l or r.

    >>> print(markdown([["a", "b"], ["x|y", "1"]], "lr"))
    | a | b |
    |:--|--:|
    | x\\|y | 1 |
    """
    heading, *others = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    rule = "|" + "|".join("--:" if side == "r" else ":--" for side in align) + "|"
    return "\n".join([heading, rule, *others])


def size_table(report: Report) -> str:
    """Bytes of parameters and of the KV cache, before and after."""
    rows = [["", "float", "quantized", "ratio"]]
    sizes = [
        ("all parameters", report.parameter_bytes_before, report.parameter_bytes_after),
        ("linear weights", report.linear_bytes_before, report.linear_bytes_after),
    ]
    if report.kv.groups and not report.kv.unknown:
        sizes.append(("KV cache, one token", report.kv_bytes_per_token_before, report.kv_bytes_per_token))
    for name, before, after in sizes:
        ratio = f"{before / after:.2f}x" if after else "-"
        rows.append([name, bytes_text(before), bytes_text(after), ratio])
    return markdown(rows, "lrrr")


def file_table(model: Quantized) -> str:
    """The files of weights with their hashes."""
    rows = [["file", "bytes", "SHA-256"]]
    rows += [[f"`{file.name}`", f"{file.size:,}", f"`{file.sha256}`"] for file in model.weights]
    return markdown(rows, "lrl")


def ability_table(measured: Measured) -> str:
    """The mean of the tasks of each ability, of the float model and of this one, and the part that is left."""
    scores, asked = measured.results.abilities(measured.scheme), {record.task for record in measured.records}
    before = ability_scores(record for record in measured.results.of(BASELINE) if record.task in asked)
    left = measured.results.recovery(measured.scheme)
    rows = [["ability", "tasks", BASELINE, measured.scheme, "recovery"]]
    for ability, score in scores.items():
        base = before.get(ability)
        # means of different tasks are no pair
        shown = base if base is not None and base.tasks == score.tasks else None
        mark = PARTIAL_MARK if any(r.is_partial for r in measured.records if r.ability == ability) else ""
        rows.append(
            [
                _NAMES[ability],
                str(score.tasks),
                "-" if shown is None else _with_error(Estimate(shown.value, shown.stderr)) + mark,
                _with_error(Estimate(score.value, score.stderr)) + mark,
                _percent(left.get(ability)),
            ]
        )
    return markdown(rows, "lrrrr") if len(rows) > 1 else ""


def task_table(measured: Measured) -> str:
    """Every score: float model, this one, difference, recovery, and on which terms."""
    rows = [["ability", "task", "metric", BASELINE, measured.scheme, "difference", "recovery", "n", "shots", "seeds"]]
    for record in measured.records:
        change = measured.results.change(measured.scheme, record.task)
        is_itself = measured.scheme == BASELINE
        rows.append(
            [
                _NAMES[record.ability],
                _task_name(record),
                record.metric,
                "-" if change is None else _score(change.baseline),
                _score(record),
                "-" if change is None or is_itself else _difference(change),
                "-" if change is None else _percent(change.recovery),
                f"{record.items:,}",
                str(record.shots) + (", chat" if record.chat else ""),
                "/".join(str(seed) for seed in dict.fromkeys(record.seeds.values())) or "-",
            ]
        )
    return markdown(rows, "lllrrrrrrr")


def scheme_table(measured: Measured, report: Report) -> str:
    """The other schemes that were measured: bits, bytes, and what is left of each ability; "" if there are none.

    Abilities are compared only where the same tasks were measured.

    Args:
        report: of this model, whose sizes are known even if no sweep wrote any.
    """
    results = measured.results
    others = [scheme for scheme in results.schemes if scheme not in (BASELINE, measured.scheme)]
    if not others:
        return ""
    found = {scheme: results.recovery(scheme) for scheme in (measured.scheme, *others)}
    wanted = _tasks(measured.records)
    abilities = [ability for ability in ABILITIES if any(ability in each for each in found.values())]
    rows = [["scheme", "bits per weight", "weights", "KV per token", *(_NAMES[ability] for ability in abilities)]]
    for scheme, left in found.items():
        asked = _tasks(results.of(scheme))
        size = results.sizes.get(scheme)
        if size is None and scheme == measured.scheme:
            size = Size.of(report, results.model, results.revision, scheme)
        kv = None if size is None else size.kv_bytes_per_token
        rows.append(
            [
                f"**{scheme}**" if scheme == measured.scheme else scheme,
                "-" if size is None else f"{size.bits_per_weight:.2f}",
                "-" if size is None else bytes_text(size.weight_bytes),
                "-" if kv is None else bytes_text(kv),
                *(_percent(left.get(each) if asked.get(each) == wanted.get(each) else None) for each in abilities),
            ]
        )
    return markdown(rows, "l" + "r" * (3 + len(abilities)))


def _tasks(records: Iterable[Record]) -> dict[str, set[str]]:
    """{ability: tasks that count for it}."""
    found: dict[str, set[str]] = {}
    for record in records:
        if record.in_ability and record.is_accuracy:
            found.setdefault(record.ability, set()).add(record.task)
    return found


def _task_name(record: Record) -> str:
    benchmark = find_task(record.task).benchmark
    return f"{benchmark} (`{record.task}`)" if benchmark else f"`{record.task}`"


def _score(record: Record) -> str:
    return _with_error(Estimate(record.value, record.stderr)) + (PARTIAL_MARK if record.is_partial else "")


def _with_error(estimate: Estimate, digits: int = 4) -> str:
    error = "" if math.isnan(estimate.stderr) else f" ± {estimate.stderr:.{digits}f}"
    return f"{estimate.value:.{digits}f}{error}"


def _difference(change: Change) -> str:
    error = "" if math.isnan(change.difference.stderr) else f" ± {change.difference.stderr:.4f}"
    return f"{change.difference.value:+.4f}{error}" + (", within noise" if change.is_noise else "")


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    error = "" if math.isnan(estimate.stderr) else f" ± {100 * estimate.stderr:.1f}"
    return f"{100 * estimate.value:.1f} %{error}"
