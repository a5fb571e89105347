"""qllm-hf merge: the parts of a sweep that were measured on different machines, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import answering, note
from .sweeping import finish


def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Folders that `qllm-hf sweep` has written.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for all results together.")],
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Merge the parts of a sweep: every score once, and a report of all.

    Parts of one model only. A score that two parts have must be the same in both; where it is not, nothing is written.

    \b
    Examples:
      qllm-hf sweep path/to/model --schemes FP16 --part --tasks mini --limit 50 -o parts/FP16
      qllm-hf sweep path/to/model --schemes W4 --part --tasks mini --limit 50 -o parts/W4
      qllm-hf merge parts/* -o sweep
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        from ..results import BASELINE
        from ..sweep.merge import merge as merge_parts
        from ..sweep.run import Swept

        results = merge_parts(parts, out)
        has_baseline = BASELINE in results.schemes
        if not has_baseline and not quiet:
            note(f"{BASELINE} is in no part, so nothing can be compared and no report was written.")
        finish(Swept(results, {}, {}), out, as_json=as_json, talks=not quiet, part=not has_baseline)
