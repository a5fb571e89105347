"""qllm-hf sweep: many schemes on one model, in five groups of abilities, to a folder with a report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MissingExtraError, QllmError
from . import asking, options
from .output import answer, answering, note

if TYPE_CHECKING:
    from ..sweep.run import Progress, Swept

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
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        names = asking.choose(tasks, abilities, without, judge is not None)

        from ..evaluation.ranks import leave, this_process
        from ..loading import load_tokenizer
        from ..results import write_command
        from ..sweep.models import Models
        from ..sweep.run import Settings
        from ..sweep.run import sweep as run_sweep
        from ..sweep.schemes import parse_candidates

        ranks = this_process()
        asking.stop_politely(ranks, out)
        changes = options.make_config("W4", keep, override)
        assert changes is not None
        given: dict[str, Any] = {
            key: value
            for key in ("modules_to_not_convert", "overrides")
            if (value := getattr(changes, key)) is not None
        }
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        if calibration is not None:
            from ..methods.calibration import read_calibration

            given["calibration"] = read_calibration(calibration, tokenizer, samples=samples, seqlen=seqlen)
        candidates = parse_candidates(schemes.split(","), **given)
        for config in candidates.values():
            if config is not None:
                config.check_ready()
        device_map = device_map or asking.own_device()
        models = Models(model, dtype=dtype.value, device_map=device_map, trust_remote_code=trust_remote_code)
        talks = not quiet and ranks.is_first
        if talks and not models.keeps:
            note("memory is too short to keep the float weights: they are read from disk for each scheme.")
        if talks and not no_chat and not tokenizer.chat_template:
            note("the tokenizer has no chat template: every question is asked as plain text.")
        rater = None if judge is None else asking.make_rater(judge, judge_model, judge_price, judge_prompts, out, talks)
        teller = _Teller(list(candidates), names, live=sys.stderr.isatty()) if talks else None
        if ranks.is_first:
            write_command(out, shlex.join(["qllm-hf", *sys.argv[1:]]))
        swept = run_sweep(
            models,
            tokenizer,
            candidates,
            names,
            out,
            Settings(limit, batch_size, data_dir, shots, not no_chat, rater, ranks, bars=False),
            teller.tell if teller else _silent,
        )
        leave(ranks)
        if ranks.is_first:
            _finish(swept, out, as_json=as_json, talks=talks)


def _silent(progress: Progress) -> None:
    """Says nothing."""


def _finish(swept: Swept, out: Path, *, as_json: bool, talks: bool) -> None:
    """The report, the answer, and exit code 1 if a scheme failed."""
    from ..sweep.table import summary

    results = swept.results
    written = _report(out, talks)
    for scheme, warned in swept.warned.items():
        for text in warned if talks else ():
            note(f"warning: {scheme}: {text}")
    data = {
        "folder": str(out),
        "report": None if written is None else str(written),
        "partial": results.is_partial,
        "sizes": {scheme: asdict(size) for scheme, size in results.sizes.items()},
        "recovery": {
            scheme: {ability: kept._asdict() for ability, kept in results.recovery(scheme).items()}
            for scheme in results.schemes
        },
        "records": [record.to_json() for record in results.records],
        "failures": swept.failures,
    }
    where = f"Results in {out}" if written is None else f"Results in {out}, report in {written}"
    answer(data, f"{summary(results)}\n\n{where}", as_json=as_json)
    if swept.failures:
        said = "; ".join(f"{scheme} ({why})" for scheme, why in swept.failures.items())
        raise QllmError(f"{len(swept.failures)} schemes could not be measured: {said}. The others are in the report.")


def _report(out: Path, talks: bool) -> Path | None:
    from ..page.write import write_report

    try:
        return write_report(out)
    except MissingExtraError as error:
        if talks:
            note(f"no report was written: {error}")
        return None


class _Teller:
    """Says on stderr what was measured: a table that is drawn again on a terminal, lines elsewhere."""

    def __init__(self, labels: list[str], tasks: list[str], *, live: bool) -> None:
        self.labels, self.tasks, self.live = labels, tasks, live
        self.records: dict[tuple[str, str], Any] = {}
        self._lines = 0

    def tell(self, progress: Progress) -> None:
        """One more score is there."""
        from ..sweep.table import running

        record = progress.record
        self.records[record.scheme, record.task] = record
        said = f"[{progress.done}/{progress.total}] {asking.remark(record)}"
        if not self.live:
            if progress.is_new:
                note(said)
            return
        text = running(self.labels, self.tasks, self.records.values(), {}) + "\n" + said
        # up to where the last table began, and clear all that is below
        sys.stderr.write(f"\x1b[{self._lines}F\x1b[J" if self._lines else "")
        note(text)
        self._lines = text.count("\n") + 1
