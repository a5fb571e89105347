"""qllm-hf tasks: what can be measured, and where its questions come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import answer, answering

if TYPE_CHECKING:
    from ..evaluation.task import Source


def tasks(
    abilities: Annotated[
        str, typer.Option(help="nlp, emergent, trust, dialogue, long, with commas between, or all.")
    ] = "all",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """List all tasks: ability, benchmark, metric, chance, shots, source, licence.

    \b
    Examples:
      qllm-hf tasks
      qllm-hf tasks --abilities long --json
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        rows = _rows(abilities)
        answer({"tasks": rows}, _page(rows), as_json=as_json)


def _rows(abilities: str) -> list[dict[str, Any]]:
    from ..evaluation.miniature import MINIATURE
    from ..evaluation.record import ABILITIES
    from ..evaluation.registry import TASKS, tasks_of
    from ..evaluation.study import STUDY

    wanted = [name.strip() for name in abilities.split(",") if name.strip()]
    tasks_of(wanted)  # refuses names that are none
    order = {ability: number for number, ability in enumerate(ABILITIES)}
    rows = []
    for name, info in TASKS.items():
        if "all" not in wanted and info.ability not in wanted:
            continue
        group = "mini" if name in MINIATURE else "study" if name in STUDY or info.in_ability else "lm_eval"
        rows.append(
            {
                "task": name,
                "ability": info.ability,
                "benchmark": info.benchmark or "miniature task of qllm_hf",
                "metric": info.metric,
                "chance": info.chance,
                "shots": info.shots,
                "source": _source(info.source, made_here=info.source.generated or group == "mini"),
                "file": f"{info.source.file}.jsonl" if info.source.file else "",
                "licence": info.source.licence or "Apache-2.0",
                "counts_for_ability": info.in_ability and group != "mini",
                "group": group,
            }
        )
    groups = ["study", "lm_eval", "mini"]
    return sorted(rows, key=lambda row: (groups.index(row["group"]), order[row["ability"]]))


def _source(source: Source, *, made_here: bool) -> str:
    if made_here:
        return "made here"
    return f"hub {source.hub}" if source.hub else source.home


def _page(rows: list[dict[str, Any]]) -> str:
    from ..reporting.text import table

    titles = {
        "study": "Benchmarks of the study",
        "lm_eval": "lm_eval's own variants, by its ids; they do not count for an ability",
        "mini": "Miniature tasks, which need no data",
    }
    parts = []
    for group, title in titles.items():
        members = [row for row in rows if row["group"] == group]
        if not members:
            continue
        cells = [["task", "ability", "benchmark", "metric", "chance", "shots", "source", "licence"]]
        for row in members:
            chance = "" if row["chance"] is None else f"{row['chance']:.3g}"
            shown = ("task", "ability", "benchmark", "metric")
            cells.append([*(row[key] for key in shown), chance, str(row["shots"]), row["source"], row["licence"]])
        parts.append(f"{title}\n{table(cells, 'llllrrll')}")
    parts.append(
        "qllm_lines_N and qllm_kv_retrieval_N exist for every N. With --data-dir DIR, rows are read from\n"
        "DIR/FILE; `qllm-hf tasks --json` names each FILE."
    )
    return "\n\n".join(parts)
