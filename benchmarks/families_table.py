"""Every supported family: what is quantized, how far it is from its simulation, and which ways to generate work.

    python benchmarks/families_table.py [family ... | --page]

Runs the checks of tests/family_checks.py on tiny random models, writes benchmarks/results/families-VERSION.csv for
the transformers that is installed, and makes docs/families.md of all such files. With families given, only shows
their rows; with --page, only makes the page. Ends with an error if a check fails.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from machine import RESULTS, write_results
from packaging.version import Version

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from family_checks import (  # noqa: E402
    COVERAGE,
    GENERATION_SCHEME,
    GROUP_SIZE,
    MODES,
    REFUSED,
    REMARKS,
    SCHEMES,
    check_mode,
    check_scheme,
    packed_and_simulated,
)
from tiny_models import MODELS  # noqa: E402

PAGE = REPO / "docs" / "families.md"
COLUMNS = ("coverage", "difference", "reload", "in_memory", "dequantized", "kv_effect")
NOISE = 1e-5  # of logits of size 2 to 13: above, it is a difference

INTRODUCTION = f"""# Families

One tiny random model of each family, made by `benchmarks/families_table.py`. The numbers are the largest absolute
differences between the float32 logits of two models that are meant to be the same:

- for each scheme: the packed model, loaded from a float checkpoint, and a float model of transformers whose weights,
  layer inputs, keys and values are rounded from outside; with a cache and without, the larger one. The group size is
  {GROUP_SIZE}, which leaves a short last group in some matrices.
- *read again*: the packed model, and the same saved in several files and loaded; the largest of all schemes.
- *in memory*: the packed model, and `quantize_` of the float model; the largest of all schemes.

*Coverage* is the share of linear weights that are quantized; embeddings and the output head do not count. Logits of
these models are 2 to 13 in size, so 1e-7 is the last digit: a sum taken in another order.

Generation compares tokens of the {GENERATION_SCHEME} model and its simulation in the same mode of `generate`. ✓ means
the same tokens, *no* that transformers refuses both models with the same error, ✗ that a check fails.
"""


def measure(families: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A row for each family and scheme, and for each family and way to generate."""
    for name in families:
        with tempfile.TemporaryDirectory() as folder:
            for scheme in SCHEMES:
                result = check_scheme(name, scheme, Path(folder))
                numbers = {column: getattr(result, column) for column in COLUMNS}
                wrong = [*result.unknown_keys, *(result.uncovered if scheme.startswith("W") else ())]
                far = max(result.difference, result.reload, result.in_memory, result.dequantized) > NOISE
                said = result.says_no_kv == ("KV" in scheme and not MODELS[name].has_kv)
                has_effect = (result.kv_effect > 0) == ("KV" in scheme and MODELS[name].has_kv)
                outcome = "same" if not (wrong or far) and said and has_effect else f"differs: {wrong}"
                yield {"family": name, "check": scheme, **numbers, "result": outcome}
        packed, simulated = packed_and_simulated(name)
        for mode in MODES:
            outcome = check_mode(name, mode, packed, simulated)
            if outcome.startswith("refused") and mode not in REFUSED.get(name, {}):
                outcome = f"differs: unexpectedly {outcome}"
            yield {
                "family": name,
                "check": mode,
                **dict.fromkeys(COLUMNS, ""),
                "result": outcome.split(":")[0] if outcome.startswith("refused") else outcome,
            }


def page(tables: dict[str, list[dict[str, str]]]) -> str:
    """docs/families.md from the rows of each version of transformers, of which the first is shown in full."""
    notes: dict[str, int] = {}
    parts, shown = [INTRODUCTION], set[str]()
    for version, rows in tables.items():
        cells = {(row["family"], row["check"]): row for row in rows}
        families = list(dict.fromkeys(row["family"] for row in rows))
        parts.append(f"## transformers {version}")
        for lines in (_numbers(families, cells, notes), _generation(families, cells, notes)):
            new = [line for line in lines[2:] if line not in shown]
            same = len(lines) - 2 - len(new)
            shown |= {*new}
            parts.append("\n".join([*lines[:2], *new]) if new else "")
            others = f"The other {same}" if new else f"{lines[0].split()[1].capitalize()}: all {same}"
            parts.append(f"{others} rows are as above." if same else "")
        measured = rows[0]
        parts.append(f"Python {measured['python']}, torch {measured['torch']}, {measured['cpu']}.")
    parts.append("\n".join(f"[^{number}]: {text[0].upper()}{text[1:]}." for text, number in notes.items()))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _note(text: str | None, notes: dict[str, int]) -> str:
    return f" [^{notes.setdefault(text, len(notes) + 1)}]" if text else ""


def _numbers(families: list[str], cells: dict[tuple[str, str], dict[str, str]], notes: dict[str, int]) -> list[str]:
    lines = [_row(["scored", "coverage", *SCHEMES, "read again", "in memory"]), _row(["---"] * (len(SCHEMES) + 4))]
    for name in families:
        rows = [cells[name, scheme] for scheme in SCHEMES]
        coverage = min(float(row["coverage"]) for row in rows if row["check"].startswith("W"))
        why = COVERAGE.get(name, (1.0, ""))[1] if coverage < 1 else None
        largest = [_number(max(float(row[column]) for row in rows)) for column in ("reload", "in_memory")]
        differences = [_number(float(r["difference"])) + ("" if r["result"] == "same" else " ✗") for r in rows]
        lines.append(_row([name, f"{coverage:.1%}" + _note(why, notes), *differences, *largest]))
    return lines


def _generation(families: list[str], cells: dict[tuple[str, str], dict[str, str]], notes: dict[str, int]) -> list[str]:
    lines = [_row(["generated", *MODES]), _row(["---"] * (len(MODES) + 1))]
    for name in families:
        found = []
        for mode in MODES:
            refusal, remark = REFUSED.get(name, {}).get(mode), REMARKS.get((name, mode))
            why = f"refused by transformers for any model of the family: {refusal}" if refusal else remark
            mark = {"same": "✓", "refused": "no"}.get(cells[name, mode]["result"], "✗")
            found.append(mark + _note(why, notes))
        lines.append(_row([name, *found]))
    return lines


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def main() -> None:
    torch.set_num_threads(1)  # faster for matrices this small
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    if sys.argv[1:] == ["--page"]:
        write_page()
        return
    chosen = sys.argv[1:] or list(MODELS)
    rows = []
    for row in measure(chosen):
        rows.append(row)
        shown = row["result"] if row["coverage"] == "" else f"{row['difference']:.1e} {row['result']}"
        print(f"{row['family']:12} {row['check']:17} {shown}", flush=True)
    if chosen == list(MODELS):
        write_results(f"families-{transformers.__version__}", rows)
        write_page()
    failed = [f"{row['family']} {row['check']}: {row['result']}" for row in rows if row["result"].startswith("differs")]
    if failed:
        sys.exit("\n".join(["These differ:", *failed]))


def write_page() -> None:
    """docs/families.md from all results there are, newest transformers first."""
    files = {Version(path.stem.partition("-")[2]): path for path in RESULTS.glob("families-*.csv")}
    tables = {}
    for version in sorted(files, reverse=True):
        with files[version].open(newline="", encoding="utf-8") as file:
            tables[str(version)] = list(csv.DictReader(file))
    PAGE.write_text(page(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
