"""`qllm-hf sweep` on more than one machine: on a Ray cluster, or as commands for Jobs on the Hub."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import UsageError, answer
from .stopping import listen_again

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
    from ..results import write_command

    cpus, gpus, retries = settings
    progress, tell = say
    out = wanted[-1]
    pool = RayPool(address, cpus=cpus, gpus=gpus)
    listen_again()  # Ray has put its own handler in place of ours
    write_command(out, command)
    if asked.data_dir is not None:  # workers run in another folder
        asked = replace(asked, data_dir=str(Path(asked.data_dir).expanduser().resolve()))
    # Ray prints whole logs of machines that are gone to stdout, which is for the answer; `tell` says it in a line
    with contextlib.redirect_stdout(io.StringIO()):
        return sweep_on(pool, subject, *wanted, asked, progress, retries=retries, tell=tell)


def print_hub_jobs(
    model: str,
    data_dir: Path | None,
    schemes: tuple[str, dict[str, Any], str | None],
    tasks: tuple[list[str], bool],
    job: tuple[str, str, str | None, str],
    options: tuple[str, ...],
    out: Path,
    *,
    as_json: bool,
) -> None:
    """Print the commands that run a sweep as Jobs on the Hub.

    Args:
        schemes: as they were given, options of all of them, and calibration text.
        tasks: their names, and whether each ability is a job of its own.
        job: dataset for the results, time, what is installed, kind of machine.
        options: further words for each job.
    """
    from .. import __version__
    from ..cluster.flavors import choose_flavor
    from ..cluster.footprint import footprint
    from ..cluster.hub_jobs import Part, Wanted, page
    from ..cluster.hub_jobs import as_json as for_programs
    from ..evaluation.record import ABILITIES
    from ..evaluation.registry import find_task
    from ..loading import check_float, model_on_meta
    from ..sweep.schemes import parse_candidates

    texts, given, calibration = schemes
    if calibration is not None:
        if Path(calibration).expanduser().exists():
            raise UsageError(
                f"--calibration {calibration!r} is a file here, and jobs run elsewhere. Give a dataset on the Hub "
                "(owner/name), or curriculum."
            )
        given = {**given, "calibration": calibration}
    names, by_ability = tasks
    repo, timeout, install, flavor = job
    wanted = Wanted(model, data_dir, options, repo, timeout, install or f"qllm-hf[eval]=={__version__}")
    wanted.check()
    check_float(model, trust_remote_code="--trust-remote-code" in options)
    shapes = model_on_meta(model, trust_remote_code="--trust-remote-code" in options)
    abilities = {name: [task for task in names if find_task(task).ability == name] for name in ABILITIES}
    groups = {name: found for name, found in abilities.items() if found} if by_ability else {"": names}
    parts = []
    for label, config in parse_candidates(texts.split(","), **given).items():
        if config is not None:
            config.check_ready()
        need = footprint(shapes, config, on_gpu=not flavor.startswith("cpu"))
        machine = choose_flavor(need, flavor)
        parts += [Part(label, ability, tuple(found), need, machine) for ability, found in groups.items()]
    answer(dict(for_programs(parts, wanted, out)), page(parts, wanted, out), as_json=as_json)
