"""`qllm-hf sweep` on more than one machine: on a Ray cluster, or as commands for Jobs on the Hub."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import asking
from .output import note

if TYPE_CHECKING:
    from ..cluster.run import Spread
    from ..cluster.worker import Asked, Subject
    from ..sweep.run import Progress
    from ..sweep.schemes import Candidates


def on_ray(
    address: str,
    settings: tuple[int | None, float | None, int],
    subject: Subject,
    wanted: tuple[Any, Candidates, list[str], Path],
    asked: Asked,
    say: tuple[Callable[[Progress], None], Callable[[str], None]],
    command: str,
) -> Spread:
    """What comes of a sweep on a Ray cluster.

    Args:
        settings: cores and GPUs of a job, retries.
        wanted: tokenizer, schemes, tasks, and the folder of results.
        say: what is called with each score, and with each remark.
        command: what was typed.
    """
    from ..cluster.ray_pool import RayPool
    from ..cluster.run import sweep_on
    from ..evaluation.ranks import Ranks
    from ..results import write_command

    cpus, gpus, retries = settings
    progress, tell = say
    out = wanted[-1]
    pool = RayPool(address, cpus=cpus, gpus=gpus)
    asking.stop_politely(Ranks(), out)  # again: Ray has put its own in place of it
    write_command(out, command)
    if asked.data_dir is not None:  # workers run in another folder
        asked = replace(asked, data_dir=str(Path(asked.data_dir).expanduser().resolve()))
    try:
        # Ray prints whole logs of machines that are gone to stdout, which is for the answer; `tell` says it in a line
        with contextlib.redirect_stdout(io.StringIO()):
            return sweep_on(pool, subject, *wanted, asked, progress, retries=retries, tell=tell)
    except KeyboardInterrupt:
        note(f"stopped; what was measured is kept in {str(out)!r}: the same command goes on from there.")
        raise SystemExit(130) from None
