"""qllm-hf sweep: many schemes on one model, in five groups of abilities, to a folder with a report."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import asking, options
from .output import UsageError, answering, note
from .sweeping import Teller, finish, silent

SCHEMES = "quick"


def sweep(
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results. The same command goes on where it stopped.")
    ],
    schemes: Annotated[
        str,
        typer.Option(
            help="What to compare, with commas between: W4,W4KV8,W3+gptq. 'quick' are 7, 'study' the 16 of the study. "
            "The float model always comes along."
        ),
    ] = SCHEMES,
    abilities: asking.Abilities = "all",
    tasks: asking.Tasks = None,
    without: asking.Without = None,
    limit: asking.Limit = None,
    data_dir: asking.DataDir = None,
    shots: asking.Shots = None,
    no_chat: asking.NoChat = False,
    judge: asking.Judge = None,
    judge_model: asking.JudgeModel = None,
    judge_price: asking.JudgePrice = None,
    judge_prompts: asking.JudgePrompts = None,
    batch_size: asking.BatchSize = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Text for methods such as W3+gptq: a file, a dataset on the Hub, or 'curriculum'."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Blocks of calibration text.")] = 128,
    seqlen: Annotated[int, typer.Option(min=1, help="Tokens of a block.")] = 512,
    keep: options.Keep = None,
    override: options.Override = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    part: Annotated[
        bool,
        typer.Option("--part", help="Only the schemes that are named, not the float model: for `qllm-hf merge`."),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Spread it over a Ray cluster: auto for the one this machine belongs to, HOST:PORT, or local.",
        ),
    ] = None,
    job_cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores of a job on a cluster; by default the smallest machine's.")
    ] = None,
    job_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a job on a cluster; by default 1 where there are some.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a job that was lost with its machine is begun again.")
    ] = 3,
    hub_jobs: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Print commands for Jobs on the Hub that write to this dataset."),
    ] = None,
    by_ability: Annotated[bool, typer.Option("--by-ability", help="A job for each scheme and ability.")] = False,
    job_flavor: Annotated[str, typer.Option(help="Machine of a job on the Hub; auto: the smallest it fits.")] = "auto",
    job_timeout: Annotated[str, typer.Option(help="Of a job on the Hub: 90m, 6h, 1d.")] = "6h",
    job_install: Annotated[
        str | None, typer.Option(help="What a job on the Hub installs; by default this version of qllm-hf.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure many schemes on one model: scores in five groups of abilities, what each takes, and a report.

    Every pair of scheme and task is measured once. The cheapest task of each ability comes first, for all schemes, so
    that a first picture is there early. The folder then holds report.html, and `qllm-hf recommend`, `report` and
    `card` read it.

    \b
    Examples:
      qllm-hf sweep reference --schemes W4,KV4,W4KV8 --tasks mini --limit 50 -o sweep
      qllm-hf sweep path/to/model --schemes study --data-dir data -o sweep
      qllm-hf sweep path/to/model --schemes W3,W3+gptq --calibration text.jsonl -o sweep
      qllm-hf sweep owner/name --schemes study --ray auto -o sweep
      qllm-hf sweep owner/name --schemes study --hub-jobs me/results -o sweep > jobs.sh
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        names = asking.choose(tasks, abilities, without, judge is not None)
        if ray is not None and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("--ray starts processes itself. Give the command without torchrun.")
        if ray is not None and part:
            raise UsageError("--part measures without the float model, which a sweep on a cluster begins with.")
        if ray is not None and judge is not None:
            raise UsageError(
                "--judge rates on one machine: sweep with --ray and without it, then the same command with --judge, "
                f"--tasks qllm_mt_bench and without --ray, into the same folder ({out})."
            )

        changes = options.make_config("W4", keep, override)
        assert changes is not None
        given: dict[str, Any] = {
            key: value
            for key in ("modules_to_not_convert", "overrides")
            if (value := getattr(changes, key)) is not None
        }
        if hub_jobs is not None:
            from .spread import print_hub_jobs

            words: list[str] = []
            for name, value in (
                ("--limit", limit),
                ("--shots", shots),
                ("--batch-size", batch_size),
                ("--calibration", calibration),
                ("--samples", samples if calibration else None),
                ("--seqlen", seqlen if calibration else None),
                ("--dtype", None if dtype is options.Dtype.auto else dtype.value),
                *(("--keep", pattern) for pattern in keep or ()),
                *(("--override", text) for text in override or ()),
            ):
                words += [] if value is None else [name, str(value)]
            words += ["--no-chat"] if no_chat else []
            words += ["--trust-remote-code"] if trust_remote_code else []
            print_hub_jobs(
                model,
                data_dir,
                (schemes, given, calibration),
                (names, by_ability),
                (hub_jobs, job_timeout, job_install, job_flavor),
                tuple(words),
                out,
                as_json=as_json,
            )
            return

        from ..evaluation.ranks import this_process
        from ..evaluation.store import writing
        from ..loading import load_tokenizer
        from ..results import write_command
        from ..sweep.models import Models
        from ..sweep.run import Settings
        from ..sweep.run import sweep as run_sweep
        from ..sweep.schemes import parse_candidates

        with this_process().together() as ranks, contextlib.ExitStack() as held:
            asking.keeps_answers(ranks, out)
            if ranks.is_first:
                held.enter_context(writing(out))
            talks = not quiet and ranks.is_first
            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
            if calibration is not None:
                from ..methods.calibration import read_calibration

                given["calibration"] = read_calibration(calibration, tokenizer, samples=samples, seqlen=seqlen)
            candidates = parse_candidates(schemes.split(","), baseline=not part, **given)
            for config in candidates.values():
                if config is not None:
                    config.check_ready()
            if talks and not no_chat and not tokenizer.chat_template:
                note("the tokenizer has no chat template: every question is asked as plain text.")
            teller = Teller(list(candidates), names, live=sys.stderr.isatty()).tell if talks else silent
            command = shlex.join(["qllm-hf", *sys.argv[1:]])
            jobs = None
            if ray is not None:
                from ..cluster.worker import Asked, Subject
                from .spread import on_ray

                spread = on_ray(
                    ray,
                    (job_cpus, job_gpus, retries),
                    Subject.of(model, dtype=dtype.value, device_map=device_map, trust_remote_code=trust_remote_code),
                    (tokenizer, candidates, names, out),
                    Asked(limit, batch_size, None if data_dir is None else str(data_dir), shots, not no_chat),
                    (teller, note if talks else silent),
                    command,
                )
                swept, jobs = spread.swept, spread.jobs
            else:
                device_map = device_map or asking.own_device()
                models = Models(model, dtype=dtype.value, device_map=device_map, trust_remote_code=trust_remote_code)
                if talks and not models.keeps:
                    note("memory is too short to keep the float weights: they are read from disk for each scheme.")
                rater = None
                if judge is not None:
                    rater = asking.make_rater(judge, judge_model, judge_price, judge_prompts, out, talks)
                if ranks.is_first:
                    write_command(out, command)
                swept = run_sweep(
                    models,
                    tokenizer,
                    candidates,
                    names,
                    out,
                    Settings(limit, batch_size, data_dir, shots, not no_chat, rater, ranks, bars=False),
                    teller,
                )
        if ranks.is_first:
            finish(swept, out, as_json=as_json, talks=talks, part=part, jobs=jobs)
