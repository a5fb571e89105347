"""qllm-hf report: the page of a folder of results, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import answer, answering


def report(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="A folder that `qllm-hf sweep` has written.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of the page; by default RESULTS/report.html.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write the report of a sweep: one HTML file with every picture and number, and the pictures beside it.

    \b
    Examples:
      qllm-hf report sweep
      qllm-hf report sweep -o reports/model.html
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        from ..page.write import FIGURES, write_report
        from ..results import read_results
        from ..sweep.table import summary

        results = read_results(folder)
        path = write_report(folder, out)
        pictures = path.parent / FIGURES
        data = {"report": str(path), "figures": sorted(str(each) for each in pictures.iterdir())}
        answer(data, f"{summary(results)}\n\nReport in {path}, pictures in {pictures}", as_json=as_json)
