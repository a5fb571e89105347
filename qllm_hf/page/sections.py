"""The parts of a report that are made of the records alone."""

from __future__ import annotations

import math

from .. import __version__
from ..advice.recommend import recommend
from ..errors import QllmError
from ..evaluation.record import ABILITIES, Record
from ..reporting.text import bytes_text
from ..results import BASELINE, Results
from ..sweep.table import percent, summary_rows, unchanged, uneven
from . import html


def heading(results: Results) -> str:
    """Which model, and whether these are whole scores."""
    parts = [f"<h1>What quantization costs {html.text(name_of(results))}</h1>"]
    dtypes = ", ".join(sorted({record.dtype for record in results.records}))
    dates = sorted(record.date for record in results.records if record.date)
    when = f", measured {html.text(dates[0][:10])}" if dates else ""
    if dates and dates[0][:10] != dates[-1][:10]:
        when += f" to {html.text(dates[-1][:10])}"
    parts.append(
        f'<p class="soft">Revision {html.text(results.revision or "unknown")}, {html.text(dtypes)}, '
        f"{len(results.schemes)} schemes, {len(results.tasks)} tasks, {len(results.records)} scores{when}. "
        f"qllm_hf {html.text(__version__)}.</p>"
    )
    if results.is_partial:
        limits = sorted({record.limit for record in results.records if record.limit is not None})
        parts.append(
            f'<p class="warning">PARTIAL: only the first {html.text(" or ".join(map(str, limits)))} items of some '
            "tasks were asked. These are not the benchmarks' scores.</p>"
        )
    return "\n".join(parts) + "\n"


def name_of(results: Results) -> str:
    """The model's name, without the folders above it."""
    return results.model.rstrip("/").rpartition("/")[2] if results.model.startswith(("/", ".")) else results.model


def summary(results: Results) -> str:
    """One line per scheme: what it takes, and what is left."""
    rows = summary_rows(results, coverage=True)
    said = (
        "Abilities in percent of the float model's score above guessing, mean over tasks, with the standard error; "
        "items are compared one by one. Bits per weight count scales and zero points; weights count embeddings and "
        "norms. Coverage is the quantized part of the linear weights."
    )
    said += unchanged(results) + uneven(results)
    lost = [name for name in _measured(results) if name not in rows[0]]
    if lost:
        said += f" The float model is not above guessing in {', '.join(lost)}: nothing there could be lost."
    return html.section("Summary", html.table(rows), html.paragraph(html.text(said)))


def scores(results: Results) -> str:
    """Every score with its error, next to the float model's."""
    head = ["scheme", "ability", "task", "metric", "score", "change", "left", "chance", "items", "answered", "shots"]
    rows = [head]
    for record in results.records:
        change = None if record.scheme == BASELINE else results.change(record.scheme, record.task)
        difference = "" if change is None else _score(change.difference.value, change.difference.stderr, signed=True)
        if change is not None and change.is_noise:
            difference += " (noise)"
        rows.append(
            [
                record.scheme,
                record.ability,
                record.task + ("" if not record.is_partial else " *"),
                record.metric,
                _score(record.value, record.stderr),
                difference,
                "" if change is None else percent(change.recovery),
                "" if record.chance is None else f"{record.chance:.3f}",
                str(record.items),
                f"{record.answered:.0%}",
                str(record.shots),
            ]
        )
    said = (
        "Change: score minus the float model's, with the error of the paired difference; (noise) is within two of them."
    )
    said += " A star marks a partial score." if results.is_partial else ""
    return html.section("All scores", html.paragraph(html.text(said)), html.table(rows))


def advice(results: Results) -> str:
    """What is recommended for the abilities that were measured; "" where the model's shapes are not to be had here."""
    try:
        said = str(recommend(results.model, abilities=_measured(results), measured=results.folder))
    except QllmError:  # results travel further than models: another machine, a folder that is gone
        return ""
    how = (
        "For the measured abilities, one sequence of 2,048 tokens and no limit of memory. Ask for another situation: "
        "qllm-hf recommend MODEL --memory 24GB --context 16k --batch 8 --measured RESULTS"
    )
    return html.section("Recommendation", html.paragraph(html.text(how)), f"<pre>{html.text(said)}</pre>")


def provenance(results: Results) -> str:
    """How it was made: commands, machine, versions, data, seeds."""
    parts = [f"<pre>{html.text(command)}</pre>" for command in results.commands]
    rows = [["", ""]]
    for name, values in _settings(results.records).items():
        rows.append([name, "; ".join(sorted(values))])
    parts.append(html.table(rows))
    data = {(record.task, record.data.get("origin", ""), record.data.get("digest", "")) for record in results.records}
    sources = [["task", "questions from", "digest"], *(list(each) for each in sorted(data))]
    parts.append(html.folded("Where the questions are from", html.table(sources)))
    seconds = sum(record.seconds for record in results.records)
    parts.append(html.paragraph(html.text(f"The models worked {seconds / 60:.1f} minutes for these scores.")))
    return html.section("How it was made", *parts)


def _settings(records: tuple[Record, ...]) -> dict[str, set[str]]:
    """{what: all values of it}; more than one value is worth seeing."""
    found: dict[str, set[str]] = {}
    for record in records:
        for group in (record.versions, record.hardware):
            for key, value in group.items():
                found.setdefault(key, set()).add(str(value))
        for key, seed in record.seeds.items():
            found.setdefault(f"seed of {key}", set()).add(str(seed))
        if record.judge:
            found.setdefault("judge", set()).add(record.judge)
    return found


def _measured(results: Results) -> list[str]:
    there = {record.ability for record in results.records if record.in_ability and record.is_accuracy}
    return [ability for ability in ABILITIES if ability in there]


def _score(value: float, stderr: float, *, signed: bool = False) -> str:
    error = "" if math.isnan(stderr) else f"±{stderr:.4f}"
    return f"{value:{'+' if signed else ''}.4f}{error}"


def sizes(results: Results) -> str:
    """Bytes by scheme and length, as text; "" where the folder does not say."""
    if not results.sizes:
        return ""
    lengths = (1024, 4096, 16_384, 131_072)
    rows = [["", "weights", *(f"KV cache of {tokens:,} tokens" for tokens in lengths)]]
    for scheme in results.schemes:
        if (size := results.sizes.get(scheme)) is not None:
            caches = [size.kv_bytes(tokens) for tokens in lengths]
            cells = ["?" if count is None else bytes_text(count) for count in caches]
            rows.append([scheme, bytes_text(size.weight_bytes), *cells])
    return html.section("Bytes", html.table(rows))
