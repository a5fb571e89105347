"""A folder of results, read again: scores of one model under several schemes, and what each scheme takes.

OUT/records.jsonl     scores (`qllm_hf.evaluation.store`)
OUT/samples/          one line per item, which lets two schemes be compared question by question
OUT/sizes.jsonl       one line per scheme: `Size`
OUT/commands.jsonl    what was typed to make all this
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from .errors import CheckpointError, QllmWarning
from .evaluation.lines import COMMANDS, RECORDS, SIZES, append_line, read_lines
from .evaluation.record import ABILITIES, AbilityScore, Record, ability_scores
from .evaluation.samples import problem_of
from .evaluation.scoring.score import ORIGINAL
from .evaluation.sources import digest_of
from .evaluation.statistics import Estimate, mean, recovery
from .evaluation.store import Store
from .reporting.values import Report
from .shown import short_text
from .typed import made_of

BASELINE: Final = "FP16"
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
        kv: (bytes per token, tokens kept at most or None) of layers that cache alike, in one sequence; None where it
            could not be found out.
        coverage: quantized part of the linear weights, 0 to 1.
    """

    scheme: str
    model: str
    revision: str
    dtype: str
    elements: int
    bits_per_weight: float
    weight_bytes: int
    kv: tuple[tuple[int, int | None], ...] | None
    coverage: float
    format: int = SIZE_FORMAT

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Bytes of a token that no window has forgotten, of one sequence."""
        return None if self.kv is None else sum(size for size, _ in self.kv)

    def kv_bytes(self, tokens: int, batch: int = 1) -> int | None:
        """Bytes of the KV cache of `batch` sequences of `tokens` tokens."""
        if self.kv is None:
            return None
        return batch * sum(size * (tokens if kept is None else min(tokens, kept)) for size, kept in self.kv)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Size:
        """The size that `dataclasses.asdict` made JSON of.

        Raises:
            ValueError: it is none.
        """
        known, kv = {each.name for each in fields(cls)}, entry.get("kv")
        if isinstance(kv, list):
            kv = tuple(tuple(part) if isinstance(part, list) else part for part in kv)
        size = made_of(cls, {**{key: value for key, value in entry.items() if key in known}, "kv": kv})
        counts = [size.elements, size.weight_bytes, *(number for part in size.kv or () for number in part)]
        if not all(number is None or 0 <= number < 2**60 for number in counts):
            raise ValueError(f"its sizes are {short_text(repr(counts))}")
        if not (0 <= size.bits_per_weight <= 64 and 0 <= size.coverage <= 1):
            raise ValueError(f"bits_per_weight={size.bits_per_weight}, coverage={size.coverage}")
        return size

    @classmethod
    def of(cls, report: Report, model: str, revision: str, scheme: str) -> Size:
        """The size that a report says."""
        # of a window's tokens the last one comes with the query, and the cache keeps the others
        kv = tuple(
            (group.bytes_per_token_after, None if group.window is None else group.window - 1)
            for group in report.kv.groups
        )
        return cls(
            scheme=scheme,
            model=model,
            revision=revision,
            dtype=report.dtype,
            elements=report.elements,
            bits_per_weight=report.bits_per_weight or 8 * report.parameter_bytes_after / report.elements,
            weight_bytes=report.parameter_bytes_after,
            kv=None if report.kv.unknown else kv,
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
    """Scores of one model under several schemes.

    Of several records of the same scheme and task the last one counts, and none that was quantized in another way than
    the scheme's last record (other kept layers, another calibration): a scheme is one model.

    Attributes:
        folder: where they are.
        model, revision: of which model.
        records: one per (scheme, task), float model first.
        sizes: {scheme: what it takes}.
        commands: what was typed, each once.
        strict: refuse damaged lines of samples, too, instead of leaving them out with a warning.
    """

    folder: Path
    model: str
    revision: str
    records: tuple[Record, ...]
    sizes: Mapping[str, Size]
    commands: tuple[str, ...] = ()
    strict: bool = False

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

    def lines(self, record: Record) -> list[dict[str, Any]]:
        """What is kept of each item of a score; [] if nothing is."""
        store = Store(None)
        store.folder = self.folder
        path = store.samples(record)
        lines = read_lines(path, strict=self.strict)
        for line in lines:
            if (why := problem_of(line)) is not None:
                raise CheckpointError(f"{path}: an item is damaged ({why}). Delete the file, and measure again.")
        if not record.samples or not path.exists() or digest_of(lines) == record.samples:
            return lines
        said = f"{path} does not hold the items of the score of {record.task} under {record.scheme}"
        if self.strict:
            raise CheckpointError(f"{said}. Delete it, or measure again into another folder.")
        warnings.warn(f"{said}, so it does not count.", QllmWarning, stacklevel=2)
        return []

    @cached_property
    def _changes(self) -> dict[tuple[str, str], Change]:
        before = {record.task: record for record in self.of(BASELINE)}
        values = {task: _values(self.lines(record), record) for task, record in before.items()}
        found = {}
        for record in self.records:
            baseline = before.get(record.task)
            if baseline is None or asked_of(baseline) != asked_of(record):
                continue
            now = values[record.task] if record is baseline else _values(self.lines(record), record)
            found[record.scheme, record.task] = _compare(record, baseline, now, values[record.task])
        return found


def read_results(folder: str | Path, *, strict: bool = False) -> Results:
    """The results in a folder that `qllm-hf sweep` or `evaluate -o` has written.

    Args:
        strict: refuse a folder with a damaged line, where what is made of it goes to others: it is else left out, with
            a warning.

    Raises:
        CheckpointError: there are none, they cannot be read, or they are of several models.
    """
    folder = Path(folder).expanduser()
    records = Store(folder, strict=strict).records
    if not records:
        why = "it does not exist" if not folder.exists() else f"it holds no {RECORDS} with a score"
        raise CheckpointError(
            f"there are no results in {str(folder)!r}: {why}. Make some: qllm-hf sweep MODEL -o {folder}"
        )
    models = list(dict.fromkeys((record.model, record.revision) for record in records))
    if len(models) > 1:
        names = (f"{model or '(no name)'} ({revision or 'no revision'})" for model, revision in models)
        named = short_text(", ".join(map(short_text, names)))
        raise CheckpointError(
            f"the records in {str(folder)!r} are of {len(models)} models: {named}. Scores of different models cannot "
            "be compared as schemes of one. Give each model a folder of its own."
        )
    (model, revision) = models[0]
    made = {record.scheme: record.quantization for record in records}
    last = {(record.scheme, record.task): record for record in records if record.quantization == made[record.scheme]}
    ordered = sorted(last.values(), key=lambda record: record.scheme != BASELINE)
    lines = read_lines(folder / COMMANDS, strict=strict)
    commands = dict.fromkeys(line["command"] for line in lines if isinstance(line.get("command"), str))
    sizes = read_sizes(folder, model, revision, strict=strict)
    return Results(folder, model, revision, tuple(ordered), sizes, tuple(commands), strict)


def write_size(folder: Path, size: Size) -> None:
    """Keep what a scheme takes."""
    append_line(folder / SIZES, asdict(size))


def write_command(folder: Path, command: str) -> None:
    """Keep what was typed."""
    append_line(folder / COMMANDS, {"command": command})


def read_sizes(folder: Path, model: str, revision: str, *, strict: bool = False) -> dict[str, Size]:
    """{scheme: what a model takes under it}; of several lines the last one counts.

    Raises:
        CheckpointError: they are damaged, or were written by another version of this package.
    """
    sizes = {}
    for line in read_lines(folder / SIZES, strict=strict):
        if line.get("format") != SIZE_FORMAT:
            raise CheckpointError(f"{str(folder / SIZES)!r} was written by another version of qllm_hf. Sweep again.")
        try:
            size = Size.from_json(line)
        except ValueError as error:
            raise CheckpointError(f"{folder / SIZES} is damaged: {error}. Delete it, and sweep again.") from None
        if (size.model, size.revision) == (model, revision):
            sizes[size.scheme] = size
    return sizes


def asked_of(record: Record) -> tuple[Any, ...]:
    """What two records must have in common to be scores of the same questions."""
    asked = (record.task_version, record.metric, record.limit, record.shots, record.chat, record.judge, record.data)
    return *asked, record.dtype


def _values(lines: Sequence[Mapping[str, Any]], record: Record) -> dict[Any, float]:
    """{item: what it was worth} of the items that count; {} if the score is not their mean."""
    counted = [line for line in lines if line.get("group") != ORIGINAL]
    values = {line["id"]: float(line["value"]) for line in counted if isinstance(line.get("value"), int | float)}
    is_mean = len(values) == record.items and math.isclose(
        math.fsum(values.values()) / len(values), record.value, abs_tol=1e-9
    )
    return values if is_mean else {}


def _compare(record: Record, baseline: Record, now: dict[Any, float], before: dict[Any, float]) -> Change:
    both = [item for item in before if item in now]
    if len(both) > 1:
        new, old = [now[item] for item in both], [before[item] for item in both]
        difference = mean([after - value for after, value in zip(new, old, strict=True)])
        kept = None if record.chance is None else recovery(new, old, record.chance)
        return Change(record, baseline, difference, kept, True)
    kept = None
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
