"""qllm-hf evaluate: the scores of one model under one scheme, in five groups of abilities."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import asking, options
from .output import answer, answering, note, one_answer

if TYPE_CHECKING:
    from ..evaluation.record import Record


def evaluate(
    model: options.Model,
    scheme: options.SchemeText = None,
    abilities: asking.Abilities = "all",
    tasks: asking.Tasks = None,
    without: asking.Without = None,
    limit: asking.Limit = None,
    data_dir: asking.DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for records and samples. The same command goes on where it stopped."),
    ] = None,
    shots: asking.Shots = None,
    no_chat: asking.NoChat = False,
    judge: asking.Judge = None,
    judge_model: asking.JudgeModel = None,
    judge_price: asking.JudgePrice = None,
    judge_prompts: asking.JudgePrompts = None,
    batch_size: asking.BatchSize = None,
    keep: options.Keep = None,
    override: options.Override = None,
    quantize_head: options.QuantizeHead = False,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    tensor_parallel: options.TensorParallel = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure what a model can do: scores with standard errors, in five groups of abilities.

    KV bits count in every score, log-likelihoods included. Several processes share the work under torchrun, and give
    the same records as one; with --tensor-parallel they hold a part of one model each, and answer together.

    \b
    Examples:
      qllm-hf evaluate reference --scheme W4A8KV4 --tasks mini --limit 50
      qllm-hf evaluate path/to/model --scheme W4KV8 --abilities nlp,trust --data-dir data -o results
      torchrun --nproc_per_node 2 -m qllm_hf evaluate path/to/model --scheme W4 -o results
    """
    with one_answer(tensor_parallel), answering(as_json=as_json, quiet=quiet, debug=debug):
        size = options.processes(tensor_parallel)
        where = options.placing(device_map, max_memory, offload_folder)
        config = options.make_config(scheme, keep, override, quantize_head=quantize_head)
        names = asking.choose(tasks, abilities, without, judge is not None)

        from ..evaluation import engine
        from ..evaluation.ranks import this_process
        from ..evaluation.store import writing
        from ..loading import load_model, load_tokenizer, local_folder
        from ..reporting.model import scheme_of

        with this_process(one_model=tensor_parallel).together() as ranks, contextlib.ExitStack() as held:
            asking.keeps_answers(ranks, out)
            if ranks.is_first:  # before a model is loaded
                held.enter_context(writing(out))
            engine.check(names, limit=limit, data_dir=data_dir, shots=shots, has_rater=judge is not None)
            # what comes from the Hub is fetched once for each machine; a model that is cut is loaded by all at once
            in_turn = local_folder(model) is None and not tensor_parallel
            with ranks.local_first() if in_turn else contextlib.nullcontext():
                tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
                loaded = load_model(
                    model,
                    None if config is None or str(config.scheme) == "FP16" else config,
                    dtype=dtype.value,
                    tensor_parallel=size,
                    trust_remote_code=trust_remote_code,
                    **(where if device_map or tensor_parallel else {"device_map": asking.own_device()}),
                )
            talks = not quiet and ranks.is_first
            if talks and not no_chat and not tokenizer.chat_template:
                note("the tokenizer has no chat template: every question is asked as plain text.")
            rater = None
            if judge is not None:
                rater = asking.make_rater(judge, judge_model, judge_price, judge_prompts, out, talks)

            def told(record: Record) -> None:
                if talks:
                    note(asking.remark(record))

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
        if ranks.is_first:
            answer(_data(records), _page(records), as_json=as_json)


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
