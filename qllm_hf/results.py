"""A folder of results, read again: scores of one model under several schemes, and what each scheme takes.

OUT/records.jsonl     scores (`qllm_hf.evaluation.store`)
OUT/samples/          one line per item, which lets two schemes be compared question by question
OUT/sizes.jsonl       one line per scheme: `Size`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from .errors import CheckpointError
from .evaluation.lines import append_line, read_lines
from .evaluation.record import ABILITIES, AbilityScore, Record, ability_scores
from .evaluation.statistics import Estimate, mean, recovery
from .evaluation.store import Store
from .reporting.values import Report

BASELINE: Final = "FP16"
SIZES: Final = "sizes.jsonl"
SIZE_FORMAT: Final = 1
_NOISE: Final = 2.0
"""Differences within so many standard errors are called noise."""


@dataclass(frozen=True)
class Size:
    """What a model takes under a scheme.

    Attributes:
        scheme: such as "W4KV8"; "FP16" is the float model.
        model, revision: as in the records.
        dtype: of what stays in floating point.
        elements: number of parameters.
        bits_per_weight: stored bits of a quantized weight, scales and zero points included; of the dtype for a float
            model.
        weight_bytes: of all parameters, embeddings among them.
        kv_bytes_per_token: of one sequence; None where it could not be found out.
        coverage: quantized part of the linear weights, 0 to 1.
    """

    scheme: str
    model: str
    revision: str
    dtype: str
    elements: int
    bits_per_weight: float
    weight_bytes: int
    kv_bytes_per_token: int | None
    coverage: float
    format: int = SIZE_FORMAT

    @classmethod
    def of(cls, report: Report, model: str, revision: str, scheme: str, float_bits: int) -> Size:
        """The size that a report says."""
        return cls(
            scheme=scheme,
            model=model,
            revision=revision,
            dtype=report.dtype,
            elements=report.elements,
            bits_per_weight=float(report.bits_per_weight or float_bits),
            weight_bytes=report.parameter_bytes_after,
            kv_bytes_per_token=None if report.kv.unknown else report.kv_bytes_per_token,
            coverage=report.linear_coverage if report.bits_per_weight else 0.0,
        )


@dataclass(frozen=True)
class Change:
    """One task's score under a scheme, next to the float model's.

    Attributes:
        record: of the scheme.
        baseline: of the float model.
        difference: of the means, and its standard error: paired where both answered the same items.
        recovery: the part of the score above chance that is left; None for losses, and where the float model is not
            above chance.
        paired: whether items were compared one by one.
    """

    record: Record
    baseline: Record
    difference: Estimate
    recovery: Estimate | None
    paired: bool

    @property
    def is_noise(self) -> bool:
        """Whether the difference is within two standard errors."""
        return abs(self.difference.value) <= _NOISE * self.difference.stderr


@dataclass(frozen=True)
class Results:
    """Scores of one model under several schemes. Records of the same scheme and task: the last one counts.

    Attributes:
        folder: where they are.
        model, revision: of which model.
        records: one per (scheme, task), float model first.
        sizes: {scheme: what it takes}.
    """

    folder: Path
    model: str
    revision: str
    records: tuple[Record, ...]
    sizes: Mapping[str, Size]

    @property
    def schemes(self) -> tuple[str, ...]:
        """In the order in which they were measured, the float model first."""
        found = list(dict.fromkeys(record.scheme for record in self.records))
        return tuple(sorted(found, key=lambda scheme: scheme != BASELINE))

    @property
    def tasks(self) -> tuple[str, ...]:
        """By ability."""
        found = {record.task: record.ability for record in self.records}
        return tuple(sorted(found, key=lambda task: ABILITIES.index(found[task])))

    @property
    def is_partial(self) -> bool:
        """Whether some scores are of the first items only."""
        return any(record.is_partial for record in self.records)

    def of(self, scheme: str) -> tuple[Record, ...]:
        """The records of a scheme."""
        return tuple(record for record in self.records if record.scheme == scheme)

    def record(self, scheme: str, task: str) -> Record | None:
        """The score of a task under a scheme."""
        return next((record for record in self.of(scheme) if record.task == task), None)

    def abilities(self, scheme: str) -> dict[str, AbilityScore]:
        """{ability: mean of its tasks}."""
        return ability_scores(self.of(scheme))

    def change(self, scheme: str, task: str) -> Change | None:
        """What a scheme does to a task; None where one of the two was not measured, or not on the same items."""
        return self._changes.get((scheme, task))

    def recovery(self, scheme: str, abilities: Sequence[str] = ABILITIES) -> dict[str, Estimate]:
        """{ability: mean over its tasks of the part above chance that is left}; different tasks, independent errors.

        Source: normalised performance of the study, section 2 of its specification.
        """
        found: dict[str, list[Estimate]] = {}
        for (name, _), change in self._changes.items():
            if name == scheme and change.recovery is not None and change.record.in_ability:
                found.setdefault(change.record.ability, []).append(change.recovery)
        return {ability: _mean_of(found[ability]) for ability in abilities if ability in found}

    @cached_property
    def _changes(self) -> dict[tuple[str, str], Change]:
        store = Store(None)
        store.folder = self.folder
        before = {record.task: record for record in self.of(BASELINE)}
        values = {task: _values(store, record) for task, record in before.items()}
        found = {}
        for record in self.records:
            baseline = before.get(record.task)
            if baseline is None or _asked(baseline) != _asked(record):
                continue
            now = values[record.task] if record is baseline else _values(store, record)
            found[record.scheme, record.task] = _compare(record, baseline, now, values[record.task])
        return found


def read_results(folder: str | Path) -> Results:
    """The results in a folder that `qllm-hf sweep` or `evaluate -o` has written.

    Raises:
        CheckpointError: there are none, they cannot be read, or they are of several models.
    """
    folder = Path(folder).expanduser()
    records = Store(folder).records
    if not records:
        why = "it does not exist" if not folder.exists() else "it holds no records.jsonl with a score"
        raise CheckpointError(
            f"there are no results in {str(folder)!r}: {why}. Make some: qllm-hf sweep MODEL -o {folder}"
        )
    models = list(dict.fromkeys((record.model, record.revision) for record in records))
    if len(models) > 1:
        named = ", ".join(f"{model or '(no name)'} ({revision or 'no revision'})" for model, revision in models)
        raise CheckpointError(
            f"the records in {str(folder)!r} are of {len(models)} models: {named}. Scores of different models cannot "
            "be compared as schemes of one. Give each model a folder of its own."
        )
    (model, revision) = models[0]
    last = {(record.scheme, record.task): record for record in records}
    ordered = sorted(last.values(), key=lambda record: record.scheme != BASELINE)
    return Results(folder, model, revision, tuple(ordered), _read_sizes(folder, model, revision))


def write_size(folder: Path, size: Size) -> None:
    """Keep what a scheme takes."""
    append_line(folder / SIZES, asdict(size))


def _read_sizes(folder: Path, model: str, revision: str) -> dict[str, Size]:
    known = {each.name for each in fields(Size)}
    sizes = {}
    for line in read_lines(folder / SIZES):
        if line.get("format") != SIZE_FORMAT:
            raise CheckpointError(f"{str(folder / SIZES)!r} was written by another version of qllm_hf. Sweep again.")
        size = Size(**{key: value for key, value in line.items() if key in known})
        if (size.model, size.revision) == (model, revision):
            sizes[size.scheme] = size
    return sizes


def _asked(record: Record) -> tuple[Any, ...]:
    """What two records must have in common to be scores of the same questions."""
    return record.task_version, record.metric, record.limit, record.shots, record.chat, record.judge, record.data


def _values(store: Store, record: Record) -> list[float] | None:
    """What each item was worth, if the score is their mean."""
    values = [line.get("value") for line in read_lines(store.samples(record))]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) != len(values) or len(numbers) != record.items:
        return None
    return numbers if math.isclose(math.fsum(numbers) / len(numbers), record.value, abs_tol=1e-9) else None


def _compare(record: Record, baseline: Record, now: list[float] | None, before: list[float] | None) -> Change:
    kept = None
    if now is not None and before is not None:
        difference = mean([value - old for value, old in zip(now, before, strict=True)])
        if record.chance is not None:
            kept = recovery(now, before, record.chance)
        return Change(record, baseline, difference, kept, True)
    error = math.hypot(record.stderr, baseline.stderr)
    if record.chance is not None and baseline.value - record.chance > 2 * baseline.stderr:
        base = baseline.value - record.chance
        ratio = (record.value - record.chance) / base
        kept = Estimate(max(ratio, 0.0), math.hypot(record.stderr, ratio * baseline.stderr) / base)
    return Change(record, baseline, Estimate(record.value - baseline.value, error), kept, False)


def _mean_of(estimates: Sequence[Estimate]) -> Estimate:
    count = len(estimates)
    error = math.sqrt(math.fsum(each.stderr**2 for each in estimates)) / count
    return Estimate(math.fsum(each.value for each in estimates) / count, error)
