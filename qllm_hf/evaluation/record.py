"""A score with where it comes from, and what several of them say together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from ..errors import CheckpointError
from .statistics import normalised

ABILITIES: Final = ("nlp", "emergent", "trust", "dialogue", "long")
FORMAT: Final = 1
"""Number of the record's form. A reader refuses a newer one."""

_NO_PART_OF_THE_RESULT: Final = frozenset({"seconds", "date"})


@dataclass(frozen=True)
class Record:
    """One score of one model under one scheme.

    Attributes:
        scheme: such as "W4KV8".
        ability: one of `ABILITIES`.
        task: id of the task.
        metric: what `value` is, such as "acc", a part of 1, or "nats_per_word".
        value: the mean over the items.
        stderr: its standard error; nan for a single item.
        items: how many items it is the mean of.
        chance: the value that guessing gets; None if the metric has none.
        best: the highest value there can be.
        in_ability: whether it counts for its ability.
        model: a folder or an id.
        revision: commit on the Hub, or a digest of the files.
        quantization: the config of the quantized model, with group sizes and exceptions; empty for a float model.
        dtype: of what stays in floating point.
        limit: only the first items were asked, at most so many; None if all were.
        shots: examples in front of each question.
        chat: whether questions were messages in the model's chat template.
        answered: the part of the items that got an answer.
        cut: how many prompts were too long for the model and lost their beginning.
        details: further numbers, by name.
        data: where the items come from, and a digest of them.
        task_version: of the task's questions and rules.
        judge: who rated, and with which prompts; "" if nobody had to.
        usage: requests, tokens read, tokens written.
        seeds: of everything that is drawn.
        versions: of the libraries.
        hardware: the machine.
        seconds: that the model worked, added up over all processes.
        date: when it was finished, UTC, ISO 8601.
        format: `FORMAT`.
    """

    scheme: str
    ability: str
    task: str
    metric: str
    value: float
    stderr: float
    items: int
    chance: float | None
    best: float = 1.0
    in_ability: bool = True
    model: str = ""
    revision: str = ""
    quantization: dict[str, Any] = field(default_factory=dict)
    dtype: str = ""
    limit: int | None = None
    shots: int = 0
    chat: bool = False
    answered: float = 1.0
    cut: int = 0
    details: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    task_version: str = ""
    judge: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    date: str = ""
    format: int = FORMAT

    @property
    def is_accuracy(self) -> bool:
        """Whether the value lies between guessing and perfect: these can be averaged, losses cannot."""
        return self.chance is not None

    @property
    def is_partial(self) -> bool:
        """Whether only the first items were asked. Such a score is never shown as the benchmark's."""
        return self.limit is not None

    @property
    def result(self) -> dict[str, Any]:
        """The record without what differs from one run to the next: two runs agree in all of it."""
        return {key: value for key, value in self.to_json().items() if key not in _NO_PART_OF_THE_RESULT}

    def to_json(self) -> dict[str, Any]:
        """The record as JSON holds it; a standard error that there is not is null."""
        return {**asdict(self), "stderr": None if math.isnan(self.stderr) else self.stderr}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote.

        Raises:
            CheckpointError: it was written by a newer version, or is no record.
        """
        if not isinstance(entry.get("format"), int) or "task" not in entry:
            raise CheckpointError(f"this is no record of a score: it has {', '.join(map(repr, entry)) or 'nothing'}.")
        if entry["format"] > FORMAT:
            raise CheckpointError(
                f"a record of format {entry['format']} was written by a newer qllm_hf; this one reads up to {FORMAT}. "
                "Update it: pip install --upgrade qllm-hf."
            )
        known = {each.name for each in fields(cls)}
        if missing := sorted({"scheme", "ability", "task", "metric", "value", "items"} - entry.keys()):
            raise CheckpointError(f"a record lacks {', '.join(map(repr, missing))}.")
        values = {"chance": None, **{key: value for key, value in entry.items() if key in known}}
        if values.get("stderr") is None:
            values["stderr"] = math.nan
        return cls(**values)


@dataclass(frozen=True)
class AbilityScore:
    """The mean of the tasks of one ability, each task counting the same, as parts of the best there is.

    Attributes:
        value: the mean.
        stderr: its standard error.
        chance: what guessing gets.
        tasks: how many tasks it is the mean of.
        normalised: the mean of (value - chance) / (best - chance).
        normalised_stderr: its standard error.
    """

    value: float
    stderr: float
    chance: float
    tasks: int
    normalised: float
    normalised_stderr: float


def ability_scores(records: Iterable[Record]) -> dict[str, AbilityScore]:
    """{ability: score} of the records of one scheme, in the order of `ABILITIES`; without accuracies there is none.

    The items of different tasks are different questions, so their errors are independent and their variances add up.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.is_accuracy and record.in_ability:
            found.setdefault(record.ability, []).append(record)
    return {ability: _mean_of(group) for ability in ABILITIES if (group := found.get(ability))}


def _mean_of(group: list[Record]) -> AbilityScore:
    def error(scales: list[float]) -> float:
        squares = [(record.stderr / scale) ** 2 for record, scale in zip(group, scales, strict=True)]
        return math.sqrt(sum(squares)) / len(group)

    chances = [record.chance or 0.0 for record in group]
    return AbilityScore(
        value=sum(record.value / record.best for record in group) / len(group),
        stderr=error([record.best for record in group]),
        chance=sum(chance / record.best for chance, record in zip(chances, group, strict=True)) / len(group),
        tasks=len(group),
        normalised=sum(
            normalised(record.value, chance, record.best) for chance, record in zip(chances, group, strict=True)
        )
        / len(group),
        normalised_stderr=error([record.best - chance for chance, record in zip(chances, group, strict=True)]),
    )
