"""`qllm-hf sweep` on more than one machine: on a Ray cluster, or as commands for Jobs on the Hub."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import asking
from .output import note

if TYPE_CHECKING:
    from ..cluster.run import Spread


def on_ray(
    address: str,
    settings: tuple[int | None, float | None, int],
    wanted: tuple[Any, Any, Any, list[str], Path, Any],
    progress: Callable[[Any], None],
    tell: Callable[[str], None],
    command: str,
) -> Spread:
    """What comes of a sweep on a Ray cluster.

    Args:
        settings: cores and GPUs of a job, retries.
        wanted: what `qllm_hf.cluster.run.sweep_on` takes, in its order.
        command: what was typed.
    """
    from ..cluster.ray_pool import RayPool
    from ..cluster.run import sweep_on
    from ..evaluation.ranks import Ranks
    from ..results import write_command

    cpus, gpus, retries = settings
    out = wanted[4]
    pool = RayPool(address, cpus=cpus, gpus=gpus)
    asking.stop_politely(Ranks(), out)  # again: Ray has put its own in place of it
    write_command(out, command)
    try:
        # Ray prints whole logs of machines that are gone to stdout, which is for the answer; `tell` says it in a line
        with contextlib.redirect_stdout(io.StringIO()):
            return sweep_on(pool, *wanted, progress, retries=retries, tell=tell)
    except KeyboardInterrupt:
        note(f"stopped; what was measured is kept in {str(out)!r}: the same command goes on from there.")
        raise SystemExit(130) from None
