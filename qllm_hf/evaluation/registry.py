"""Every task by its id, and what a user may call for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from ..errors import ConfigError, did_you_mean
from .miniature import MINIATURE
from .record import ABILITIES
from .study import KEYS, LINES, STUDY
from .task import TaskInfo
from .upstream import UPSTREAM

TASKS: Final[dict[str, TaskInfo]] = {**STUDY, **UPSTREAM, **MINIATURE}
_SIZED: Final = {LINES: "lines", KEYS: "keys"}


def find_task(task: str) -> TaskInfo:
    """What is known about a task; `qllm_lines_N` and `qllm_kv_retrieval_N` exist for every N from 2.

    Raises:
        ConfigError: there is none of this id.
    """
    if task in TASKS:
        return TASKS[task]
    for prefix, what in _SIZED.items():
        if (size := re.fullmatch(rf"{prefix}([1-9]\d{{0,6}})", task)) and int(size[1]) > 1:
            like = next(info for name, info in STUDY.items() if name.startswith(prefix))
            return replace(like, benchmark=f"{like.benchmark.split(',')[0]}, {size[1]} {what}")
    raise ConfigError(f"there is no task {task!r}.{did_you_mean(task, TASKS)} `qllm-hf tasks` lists them all.")


def size_of(task: str) -> int:
    """The N of `qllm_lines_N`."""
    return int(task.rsplit("_", 1)[1])


def tasks_of(abilities: Iterable[str], collection: str = "study") -> list[str]:
    """The tasks that count for some abilities, in the order of the table.

    Args:
        abilities: of `ABILITIES`, or "all".
        collection: "study", the study's benchmarks, or "mini", the miniature tasks.

    Raises:
        ConfigError: an unknown ability.
    """
    wanted = list(abilities)
    for name in wanted:
        if name not in (*ABILITIES, "all"):
            raise ConfigError(
                f"there is no ability {name!r}.{did_you_mean(name, ABILITIES)} "
                f"Abilities: {', '.join(ABILITIES)}, or all."
            )
    table = MINIATURE if collection == "mini" else {**STUDY, **UPSTREAM}
    return [name for name, info in table.items() if info.in_ability and (info.ability in wanted or "all" in wanted)]
