"""The five ability scores as metrics of Hugging Face `evaluate`, each a folder that can also be a Space."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...errors import ConfigError, did_you_mean
from ..registry import TASKS
from ..scoring.abilities import MARK

FOLDERS: Final = {
    "nlp": "qllm_basic_nlp",
    "emergent": "qllm_emergent",
    "trust": "qllm_trustworthiness",
    "dialogue": "qllm_dialogue",
    "long": "qllm_long_context",
}
"""{ability: the folder of its metric}"""


def module_path(ability: str) -> str:
    """The folder that `evaluate.load` takes. A path needs no network, and its code is that of this installation.

    >>> module_path("emergent").rsplit("/", 1)[1]
    'qllm_emergent'

    Raises:
        ConfigError: there is no such ability.
    """
    if ability not in FOLDERS:
        raise ConfigError(
            f"there is no ability {ability!r}.{did_you_mean(ability, FOLDERS)} Abilities: {', '.join(FOLDERS)}."
        )
    return (Path(__file__).parent / FOLDERS[ability]).as_posix()


def task_table(ability: str) -> str:
    """The tasks of an ability with what guessing gets and how they are scored, in Markdown."""
    lines = ["| task | benchmark | chance | rule | counts |", "|---|---|---|---|---|"]
    for task, info in TASKS.items():
        if info.ability == ability and info.chance is not None and info.benchmark:
            chance = f"{info.chance:.3g}" + (f" of {info.best:g}" if info.best != 1 else "")
            counts = "yes" if info.in_ability else "no"
            lines.append(f"| `{task}` | {info.benchmark} | {chance} | `{info.rule or MARK}` | {counts} |")
    return "\n".join(lines)
