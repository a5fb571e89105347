"""A score with where it comes from, and what several of them say together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from ..errors import CheckpointError
from ..shown import short, short_text
from ..typed import made_of
from .statistics import normalised

ABILITIES: Final = ("nlp", "emergent", "trust", "dialogue", "long")
FORMAT: Final = 1
"""Number of the record's form. A reader refuses a newer one."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][\w.+,=*-]{0,199}", re.ASCII)
_BEST: Final = 1e6  # that a score can be: 1 of a part, 10 of a rating, 100 of percent
_NO_PART_OF_THE_RESULT: Final = frozenset({"seconds", "date", "samples"})


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
        samples: a digest of the lines for its items; "" where it was not kept.
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
    samples: str = ""
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
            CheckpointError: it was written by a newer version, is no record, or says what no score can be.
        """
        if not isinstance(entry.get("format"), int) or "task" not in entry:
            raise CheckpointError(
                f"this is no record of a score: it has {short_text(', '.join(map(repr, entry))) or 'nothing'}."
            )
        if entry["format"] > FORMAT:
            raise CheckpointError(
                f"a record of format {short(entry['format'])} was written by a newer qllm_hf; this one reads "
                f"up to {FORMAT}. Update it: pip install --upgrade qllm-hf."
            )
        known = {each.name for each in fields(cls)}
        if missing := sorted({"scheme", "ability", "task", "metric", "value", "items"} - entry.keys()):
            raise CheckpointError(f"a record lacks {', '.join(map(repr, missing))}.")
        values = {"chance": None, **{key: value for key, value in entry.items() if key in known}}
        if values.get("stderr") is None:
            values["stderr"] = math.nan
        try:
            record = made_of(cls, values)
            _check(record)
        except ValueError as error:
            raise CheckpointError(f"a record is damaged: {error}. Delete it, and measure again.") from None
        return record


def _check(record: Record) -> None:
    """Raises ValueError if no measurement could have made this record.

    Names become parts of paths and of pictures, so they are plain ones.
    """
    for key in ("scheme", "task", "metric"):
        if not _NAME.fullmatch(getattr(record, key)):
            raise ValueError(f"{key}={short(getattr(record, key))} is no name")
    if record.ability not in ABILITIES:
        raise ValueError(f"ability={short(record.ability)}, allowed are {', '.join(ABILITIES)}")
    if record.items < 1 or record.cut < 0 or record.shots < 0 or (record.limit is not None and record.limit < 1):
        raise ValueError(
            f"items={short(record.items)}, cut={short(record.cut)}, shots={short(record.shots)}, "
            f"limit={short(record.limit)}"
        )
    if not 0 <= record.answered <= 1:
        raise ValueError(f"answered={short(record.answered)} is no part of 1")
    if record.chance is not None and not (
        abs(record.chance) < record.best <= _BEST
        and abs(record.value) <= record.best
        and (math.isnan(record.stderr) or 0 <= record.stderr <= record.best)
    ):
        raise ValueError(
            f"value={short(record.value)} ± {short(record.stderr)} with chance={short(record.chance)} and "
            f"best={short(record.best)}"
        )


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
