"""The tables of this folder as values.

scores.csv     source, subset, metric, model, scheme, value: one line per published value
sources.csv    source, benchmark, file in the study's repository
models.csv     model, family, params_b, size_b, active_b
speedups.csv   W4A16 against FP16 on an A100, as the survey prints it

What scores.csv leaves out follows from the other tables, so that a line says only what is its own.

Source: github.com/thu-nics/qllm-eval at 6d047af, qllm_eval/visualization (arXiv 2402.18158).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .anomalies import ANOMALIES
from .benchmarks import BENCHMARKS
from .models import StudyModel
from .score import PublishedScore


@cache
def models() -> dict[str, StudyModel]:
    """{name: model} of all models of the study."""
    return {
        row["model"]: StudyModel(
            row["model"], row["family"], float(row["params_b"]), float(row["size_b"]), float(row["active_b"])
        )
        for row in rows_of("models")
    }


@cache
def all_scores() -> tuple[PublishedScore, ...]:
    """Every published value, in the order of the study's files."""
    known = models()
    sources = {row["source"]: (row["benchmark"], row["file"]) for row in rows_of("sources")}
    rows = [(row, *sources[row["source"]]) for row in rows_of("scores")]
    floats = {
        (benchmark, row["subset"], row["metric"], row["model"]): float(row["value"])
        for row, benchmark, _ in rows
        if row["scheme"] == "FP16"
    }
    found = []
    for row, name, file in rows:
        benchmark, model = BENCHMARKS[name], known[row["model"]]
        place = {"benchmark": name, "subset": row["subset"], "metric": row["metric"], "model": row["model"]}
        flags = tuple(
            anomaly.id
            for anomaly in ANOMALIES.values()
            if anomaly.concerns(**place, family=model.family, scheme=row["scheme"], value=float(row["value"]))
        )
        found.append(
            PublishedScore(
                **place,
                ability=benchmark.ability,
                family=model.family,
                params_b=model.params_b,
                size_b=model.size_b,
                scheme=row["scheme"],
                value=float(row["value"]),
                fp16=floats[name, row["subset"], row["metric"], row["model"]],
                unit=benchmark.units[row["metric"]],
                source=file,
                flags=flags,
            )
        )
    return tuple(found)


def rows_of(table: str) -> Iterator[dict[str, str]]:
    """The lines of a table of this folder, {column: text}."""
    with (Path(__file__).parent / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)
