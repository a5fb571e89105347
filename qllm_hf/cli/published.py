"""qllm-hf published: the numbers that the study published, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import UsageError, answer, answering

if TYPE_CHECKING:
    from ..published.collection import Published

_QUESTIONS = ("ability", "benchmark", "subset", "metric", "model", "family", "scheme", "emergent")


def published(
    ability: Annotated[str | None, typer.Option(help="nlp, emergent, trust, dialogue, long; commas between.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Such as gsm8k,mt_bench.")] = None,
    subset: Annotated[str | None, typer.Option(help="Such as length=16k, round1, or 'length=*'.")] = None,
    metric: Annotated[str | None, typer.Option(help="Such as mc1.")] = None,
    model: Annotated[str | None, typer.Option(help="As the study or the Hub names it.")] = None,
    family: Annotated[str | None, typer.Option(help="Such as LLaMA2,Vicuna.")] = None,
    scheme: Annotated[str | None, typer.Option("--scheme", "-s", help="Such as W4A8,KV4, or W3-awq.")] = None,
    emergent: Annotated[str | None, typer.Option(help="icl, if, cmr, mmr, sc.")] = None,
    params: Annotated[
        str | None, typer.Option(metavar="FROM:TO", help="Billions of parameters, such as 6:13 or 13: (TO is not in).")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Percent of loss that the summary counts models within.")] = 2,
    all_rows: Annotated[bool, typer.Option("--all", help="Print all rows, not only the first 60.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Look up what the study published: 5,910 scores of 46 models, with FP16, loss, and what is odd about them.

    Loss is in percent of the FP16 score; below 0 the quantized model scored higher. Summaries count each model once.

    \b
    Examples:
      qllm-hf published
      qllm-hf published --ability long --scheme kv4 --subset length=16k
      qllm-hf published --model LLaMA2-7B-chat --benchmark mt_bench
      qllm-hf published --emergent mmr --params 13: --csv
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        if as_csv and as_json:
            raise UsageError("--csv and --json: choose one.")
        from ..published.collection import SHOWN
        from ..published.query import published as look_up

        texts = (ability, benchmark, subset, metric, model, family, scheme, emergent)
        question: dict[str, Any] = {
            name: [word.strip() for word in text.split(",") if word.strip()]
            for name, text in zip(_QUESTIONS, texts, strict=True)
            if text is not None
        }
        if empty := [name for name, words in question.items() if not words]:
            raise UsageError(f"--{empty[0]} is empty. Give a name, or leave the option out.")
        if params is not None:
            question["params"] = _range(params)
        rows = look_up(**question)
        if as_csv:
            answer({}, _csv(rows), as_json=False)
            return
        data = {"rows": rows.to_dicts(), "summary": _summaries(rows, tolerance)} if as_json else {}
        if not question and not all_rows:
            answer(data, _overview(rows), as_json=as_json)
            return
        answer(data, _page(rows, tolerance, None if all_rows else SHOWN), as_json=as_json)


def _range(text: str) -> tuple[float | None, float | None]:
    low, colon, high = text.partition(":")
    try:
        limits = (float(low) if low.strip() else None, float(high) if high.strip() else None)
    except ValueError:
        limits = (None, None)
    if not colon or limits == (None, None):
        raise UsageError(f"--params {text!r}: write FROM:TO in billions, such as 6:13, 13: or :6.")
    return limits


def _summaries(rows: Published, tolerance: float) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [
        {"benchmark": each.benchmark, "metric": each.metric, "part": each.part, "scheme": each.scheme}
        | asdict(each.summary)
        for each in rows.summaries(tolerance)
    ]


def _page(rows: Published, tolerance: float, limit: int | None) -> str:
    parts = [rows.table(limit)]
    summary = _summary_page(rows, tolerance)
    if summary:
        parts.append(summary)
    return "\n\n".join(parts)


def _summary_page(rows: Published, tolerance: float) -> str:
    from ..reporting.text import table

    found = rows.summaries(tolerance)
    if not found:
        return ""
    excluded = len(rows) - len(rows.without("excluded"))
    remark = f"; {excluded} excluded value{'s' * (excluded != 1)} left out" if excluded else ""
    if len(found) == 1:
        return f"{found[0].summary}{remark}"
    lines = [["benchmark", "metric", "scheme", "models", "mean", "median", "min", "max", f"within {tolerance:g} %"]]
    lines += [
        [
            f"{each.benchmark} {each.part}".strip(),
            each.metric,
            each.scheme,
            str(each.summary.models),
            *(
                f"{value:.1f}"
                for value in (each.summary.mean, each.summary.median, each.summary.low, each.summary.high)
            ),
            str(each.summary.within),
        ]
        for each in found
    ]
    return f"Loss in percent of FP16, each model counting once{remark}\n{table(lines, 'lllrrrrrr')}"


def _overview(rows: Published) -> str:
    """What there is, a line for each benchmark."""
    from ..published.benchmarks import BENCHMARKS
    from ..reporting.text import table

    lines = [["ability", "benchmark", "emergent", "rows", "models", "metrics", "schemes"]]
    for benchmark in BENCHMARKS.values():
        of = rows.where(lambda row, name=benchmark.name: row.benchmark == name)  # type: ignore[misc]
        metrics = ", ".join(metric.removeprefix("accuracy_") for metric in benchmark.units)
        count = [f"{len(of):,}", str(len(of.models)), metrics, str(len(of.schemes))]
        lines.append([benchmark.ability, benchmark.name, benchmark.emergent, *count])
    title = f"{len(rows):,} published scores of {len(rows.models)} models under {len(rows.schemes)} schemes"
    return f"{title}\n{table(lines, 'lllrrlr')}\nAsk for some of them: qllm-hf published --ability long --scheme KV4"


def _csv(rows: Published) -> str:
    import csv
    import io

    text = io.StringIO()
    dicts = [row | {"flags": " ".join(row["flags"])} for row in rows.to_dicts()]
    writer = csv.DictWriter(text, list(dicts[0]) if dicts else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dicts)
    return text.getvalue().rstrip("\n")
