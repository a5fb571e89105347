"""What `qllm-hf sweep` says: scores while they come in, and the answer when all are there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, QllmError
from . import asking
from .output import answer, note

if TYPE_CHECKING:
    from ..cluster.run import Attempts
    from ..sweep.run import Progress, Swept


def silent(said: object) -> None:
    """Says nothing."""


def finish(
    swept: Swept, out: Path, *, as_json: bool, talks: bool, part: bool = False, jobs: Sequence[Attempts] | None = None
) -> None:
    """The report, the answer, and exit code 1 if a scheme failed.

    Args:
        part: there is no float model to compare with, and so no report.
        jobs: where the jobs ran, of a sweep on many machines.
    """
    from ..sweep.table import summary

    results = swept.results
    written = None if part else _report(out, talks)
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
    tables = []
    if jobs is not None:
        data["jobs"] = [asdict(job) for job in jobs]
        tables = [_where(jobs)] if jobs else ["Nothing was left to measure: no job was started."]
    where = f"Results in {out}" if written is None else f"Results in {out}, report in {written}"
    answer(data, "\n\n".join([summary(results), *tables, where]), as_json=as_json)
    if swept.failures:
        said = "; ".join(f"{scheme} ({why})" for scheme, why in swept.failures.items())
        raise QllmError(f"{len(swept.failures)} schemes could not be measured: {said}. The others are in the report.")


def _where(jobs: Sequence[Attempts]) -> str:
    """Where each job ran, and how often it was begun."""
    from ..reporting.text import table

    rows = [["job", "tasks", "attempts", "machines", "seconds"]]
    rows += [
        [job.job, str(len(job.tasks)), str(len(job.nodes)), " > ".join(job.nodes), f"{job.seconds:.1f}"] for job in jobs
    ]
    return table(rows, "lrrlr", indent=0)


def _report(out: Path, talks: bool) -> Path | None:
    from ..page.write import write_report

    try:
        return write_report(out)
    except MissingExtraError as error:
        if talks:
            note(f"no report was written: {error}")
        return None


class Teller:
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
        where = f" on {progress.node}" if progress.node else ""
        said = f"[{progress.done}/{progress.total}] {asking.remark(record)}{where}"
        if not self.live:
            if progress.is_new:
                note(said)
            return
        text = running(self.labels, self.tasks, self.records.values(), {}) + "\n" + said
        # up to where the last table began, and clear all that is below
        sys.stderr.write(f"\x1b[{self._lines}F\x1b[J" if self._lines else "")
        note(text)
        self._lines = text.count("\n") + 1
