"""qllm-hf evaluate: the scores of one model under one scheme, in five groups of abilities."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import UsageError, answer, answering, note

if TYPE_CHECKING:
    from ..evaluation.dialogue import Rater
    from ..evaluation.ranks import Ranks
    from ..evaluation.record import Record

MINI = "mini"


def evaluate(
    model: options.Model,
    scheme: options.SchemeText = None,
    abilities: Annotated[
        str, typer.Option(help="nlp, emergent, trust, dialogue, long, with commas between, or all.")
    ] = "all",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks instead of abilities, with commas between; * stands for anything: 'qllm_ethics_*'. "
            "'mini' is the miniature tasks, which need no data. `qllm-hf tasks` lists all.",
        ),
    ] = None,
    without: Annotated[str | None, typer.Option(help="Tasks to leave out, written as in --tasks.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="The first items of each task only: a partial score.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the benchmarks' rows; without it they come from the Hub.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for records and samples. The same command goes on where it stopped."),
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples per question, not the study's number.")] = None,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Never use the chat template.")] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Rates MT-Bench: URL of an OpenAI-compatible server, or a model as MODEL.", metavar="URL|MODEL"
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Name of the model that the judge's server should use.")
    ] = None,
    judge_price: Annotated[
        str | None, typer.Option(help="Dollars per million tokens, IN,OUT: for the estimate before the first call.")
    ] = None,
    judge_prompts: Annotated[
        Path | None, typer.Option(help="The judge's instructions, as MT-Bench's judge_prompts.jsonl.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Items at once; by default by their tokens.")] = None,
    keep: options.Keep = None,
    override: options.Override = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure what a model can do: scores with standard errors, in five groups of abilities.

    KV bits count in every score, log-likelihoods included. Several processes share the work under torchrun, and give
    the same records as one.

    \b
    Examples:
      qllm-hf evaluate reference --scheme W4A8KV4 --tasks mini --limit 50
      qllm-hf evaluate path/to/model --scheme W4KV8 --abilities nlp,trust --data-dir data -o results
      torchrun --nproc_per_node 2 -m qllm_hf evaluate path/to/model --scheme W4 -o results
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        config = options.make_config(scheme, keep, override)
        names = choose(tasks, abilities, without, judge is not None)

        from ..evaluation import engine
        from ..evaluation.ranks import leave, this_process

        engine.check(names, limit=limit, data_dir=data_dir, shots=shots, has_rater=judge is not None)
        from ..loading import load_model, load_tokenizer
        from ..reporting.model import scheme_of

        ranks = this_process()
        _stop_politely(ranks, out)
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        loaded = load_model(
            model,
            None if config is None or str(config.scheme) == "FP16" else config,
            dtype=dtype.value,
            device_map=device_map or own_device(),
            trust_remote_code=trust_remote_code,
        )
        talks = not quiet and ranks.is_first
        if talks and not no_chat and not tokenizer.chat_template:
            note("the tokenizer has no chat template: every question is asked as plain text.")
        rater = None if judge is None else _rater(judge, judge_model, judge_price, judge_prompts, out, talks)

        def told(record: Record) -> None:
            if talks:
                note(_remark(record))

        records = engine.evaluate(
            loaded,
            tokenizer,
            engine.Subject(scheme_of(loaded), model),
            names,
            limit=limit,
            batch_size=batch_size,
            progress=told,
            data_dir=data_dir,
            out=out,
            shots=shots,
            chat=not no_chat,
            rater=rater,
            ranks=ranks,
            bars=talks and sys.stderr.isatty(),
        )
        leave(ranks)
        if ranks.is_first:
            answer(_data(records), _page(records), as_json=as_json)


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


def _rater(
    spec: str, model: str | None, price: str | None, prompts: Path | None, out: Path | None, talks: bool
) -> Rater:
    """The judge that the options mean; what it said before is in the folder of results."""
    from ..evaluation.dialogue import Rater
    from ..evaluation.judge.cached import CachedJudge
    from ..evaluation.judge.cost import parse_price
    from ..evaluation.judge.local import open_judge
    from ..evaluation.judge.prompts import DEFAULT_PROMPTS, read_prompts

    judge = open_judge(spec, model)
    return Rater(
        judge=judge if out is None else CachedJudge(judge, out / "judgements.jsonl"),
        prompts=DEFAULT_PROMPTS if prompts is None else read_prompts(prompts),
        price=None if price is None else parse_price(price),
        tell=note if talks else _silent,
    )


def _silent(text: str) -> None:
    """Says nothing."""


def _stop_politely(ranks: Ranks, out: Path | None) -> None:
    """When the program is told to end (torchrun does so when another process died), it says what is kept."""

    def stop(number: int, frame: Any) -> None:
        kept = (
            f"what was answered is kept in {str(out)!r}: the same command goes on from there."
            if out
            else "nothing is kept."
        )
        note(f"stopped by a signal; {kept}" if ranks.is_first else f"process {ranks.rank} was stopped.")
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def _remark(record: Record) -> str:
    """One line for a finished task."""
    error = "" if record.stderr != record.stderr else f" +- {record.stderr:.4f}"
    remarks = [f"{record.items} items", f"{record.seconds:.1f} s"]
    if record.cut:
        remarks.append(f"{record.cut} prompts were longer than the model reads and lost their beginning")
    if record.answered < 1:
        remarks.append(f"{1 - record.answered:.0%} without an answer")
    return f"{record.scheme} {record.task}: {record.metric} {record.value:.4f}{error} ({'; '.join(remarks)})"


def _data(records: list[Record]) -> dict[str, Any]:
    from ..evaluation.record import ability_scores

    return {
        "partial": any(record.is_partial for record in records),
        "abilities": {ability: asdict(score) for ability, score in ability_scores(records).items()},
        "records": [record.to_json() for record in records],
    }


def _page(records: list[Record]) -> str:
    from ..evaluation.record import ability_scores
    from ..evaluation.registry import find_task
    from ..reporting.text import table

    first = records[0]
    title = f"{first.model}, scheme {first.scheme}, {first.dtype}"
    if limits := {record.limit for record in records if record.is_partial}:
        title += f": PARTIAL, the first {limits.pop()} items of each task, no benchmark scores"
    rows = [["ability", "task", "benchmark", "metric", "score", "+-", "chance", "items", "answered"]]
    for record in records:
        rows.append(
            [
                record.ability,
                record.task,
                find_task(record.task).benchmark,
                record.metric,
                f"{record.value:.4f}{'*' if record.is_partial else ''}",
                "" if record.stderr != record.stderr else f"{record.stderr:.4f}",
                "" if record.chance is None else f"{record.chance:.3f}",
                str(record.items),
                f"{record.answered:.0%}",
            ]
        )
    parts = [title, table(rows, "llllrrrrr", indent=0)]
    if scores := ability_scores(records):
        lines = [["ability", "tasks", "mean", "+-", "chance", "above chance", "+-"]]
        lines += [
            [
                ability,
                str(score.tasks),
                f"{score.value:.4f}",
                f"{score.stderr:.4f}",
                f"{score.chance:.3f}",
                f"{score.normalised:.4f}",
                f"{score.normalised_stderr:.4f}",
            ]
            for ability, score in scores.items()
        ]
        parts.append(table(lines, "lrrrrrr", indent=0))
    return "\n\n".join(parts)
