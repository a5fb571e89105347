"""What the commands that ask a model questions share: which tasks, who rates, and what is said while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import UsageError, note
from .stopping import keeps

if TYPE_CHECKING:
    from ..evaluation.dialogue import Rater
    from ..evaluation.ranks import Ranks
    from ..evaluation.record import Record

MINI = "mini"

Abilities = Annotated[str, typer.Option(help="nlp, emergent, trust, dialogue, long, with commas between, or all.")]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Tasks instead of abilities, with commas between; * stands for anything: 'qllm_ethics_*'. "
        "'mini' is the miniature tasks, which need no data. `qllm-hf tasks` lists all.",
    ),
]
Without = Annotated[str | None, typer.Option(help="Tasks to leave out, written as in --tasks.")]
Limit = Annotated[int | None, typer.Option(min=2, help="The first items of each task only: a partial score.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the benchmarks' rows; without it they come from the Hub.")
]
Shots = Annotated[int | None, typer.Option(min=0, help="Examples per question, not the study's number.")]
NoChat = Annotated[bool, typer.Option("--no-chat", help="Never use the chat template.")]
Judge = Annotated[
    str | None,
    typer.Option(help="Rates MT-Bench: URL of an OpenAI-compatible server, or a model as MODEL.", metavar="URL|MODEL"),
]
JudgeModel = Annotated[str | None, typer.Option(help="Name of the model that the judge's server should use.")]
JudgePrice = Annotated[
    str | None, typer.Option(help="Dollars per million tokens, IN,OUT: for the estimate before the first call.")
]
JudgePrompts = Annotated[Path | None, typer.Option(help="The judge's instructions, as MT-Bench's judge_prompts.jsonl.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Items at once; by default by their tokens.")]


def choose(tasks: str | None, abilities: str, without: str | None, has_judge: bool) -> list[str]:
    """The tasks that the options mean.

    Raises:
        UsageError: they mean none.
        ConfigError: a name that is none.
    """
    from ..evaluation.dialogue import RATED
    from ..evaluation.registry import tasks_of

    if tasks is not None:
        chosen = _named(tasks, "--tasks")
    else:
        wanted = [name.strip() for name in abilities.split(",") if name.strip()]
        if not wanted:
            raise UsageError("--abilities names none. Give some of nlp, emergent, trust, dialogue, long, or all.")
        chosen = [name for name in tasks_of(wanted) if has_judge or name != RATED]
    left_out = [] if without is None else _named(without, "--without")
    chosen = [name for name in chosen if name not in left_out]
    if not chosen:
        raise UsageError("--without leaves no task. `qllm-hf tasks` lists them.")
    return chosen


def _named(text: str, option: str) -> list[str]:
    """The tasks that a list of names and patterns means."""
    from fnmatch import fnmatch

    from ..evaluation.registry import TASKS, find_task, tasks_of

    found: list[str] = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        if name == MINI:
            found += tasks_of(["all"], MINI)
        elif "*" in name:
            matching = [task for task in TASKS if fnmatch(task, name)]
            if not matching:
                raise UsageError(f"{option} {name!r} matches none. `qllm-hf tasks` lists them.")
            found += matching
        else:
            find_task(name)
            found.append(name)
    if not found:
        raise UsageError(f"{option} names none. `qllm-hf tasks` lists them.")
    return list(dict.fromkeys(found))


def own_device() -> str | None:
    """The accelerator of this process under torchrun, or the only one; None on a CPU."""
    import os

    import torch

    if not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def make_rater(
    spec: str, model: str | None, price: str | None, prompts: Path | None, out: Path | None, talks: bool
) -> Rater:
    """The judge that the options mean; what it said before is in the folder of results."""
    from ..evaluation.dialogue import Rater
    from ..evaluation.judge.cached import CachedJudge
    from ..evaluation.judge.cost import parse_price
    from ..evaluation.judge.local import open_judge
    from ..evaluation.judge.prompts import DEFAULT_PROMPTS, read_prompts
    from ..evaluation.lines import JUDGEMENTS

    judge = open_judge(spec, model)
    return Rater(
        judge=judge if out is None else CachedJudge(judge, out / JUDGEMENTS),
        prompts=DEFAULT_PROMPTS if prompts is None else read_prompts(prompts),
        price=None if price is None else parse_price(price),
        tell=note if talks else _silent,
    )


def _silent(text: str) -> None:
    """Says nothing."""


def keeps_answers(ranks: Ranks, out: Path | None) -> None:
    """What a run that is stopped leaves; torchrun stops all others when a process died."""
    kept = f"what was answered is kept in {str(out)!r}: the same command goes on from there"
    keeps(kept if out else "nothing is kept", rank=ranks.rank)


def remark(record: Record) -> str:
    """One line for a finished task."""
    error = "" if record.stderr != record.stderr else f" +- {record.stderr:.4f}"
    remarks = [f"{record.items} items", f"{record.seconds:.1f} s"]
    if record.cut:
        remarks.append(f"{record.cut} prompts were longer than the model reads and lost their beginning")
    if record.answered < 1:
        remarks.append(f"{1 - record.answered:.0%} without an answer")
    return f"{record.scheme} {record.task}: {record.metric} {record.value:.4f}{error} ({'; '.join(remarks)})"
