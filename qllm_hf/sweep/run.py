"""sweep(): every (scheme, task) once, the cheapest informative ones first, and nothing twice after a kill."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..errors import CheckpointError, QllmWarning
from ..evaluation import engine
from ..evaluation.dialogue import Rater
from ..evaluation.ranks import Disagreement, FailedElsewhere, LostProcess, Ranks
from ..evaluation.record import Record
from ..evaluation.sources import first_line
from ..evaluation.store import Store, writing
from ..loading import local_folder
from ..reporting.model import report
from ..results import BASELINE, Results, Size, read_results, write_size
from ..revision import revision_of
from .known import find_known, identity_of
from .models import Models
from .schedule import by_cost, by_promise, expected_work, probes
from .schemes import Candidates


@dataclass(frozen=True)
class Progress:
    """Where a sweep is.

    Attributes:
        record: the score that is there now.
        done, total: of all pairs of scheme and task.
        is_new: it was measured now, not found in the folder.
        node: the machine that measured it, where there are several.
    """

    record: Record
    done: int
    total: int
    is_new: bool
    node: str = ""


@dataclass(frozen=True)
class Settings:
    """What every scheme is asked in the same way; as in `qllm_hf.evaluation.engine.evaluate`."""

    limit: int | None = None
    batch_size: int | None = None
    data_dir: Path | None = None
    shots: int | None = None
    chat: bool = True
    rater: Rater | None = None
    ranks: Ranks = field(default_factory=Ranks)
    bars: bool = False


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    Attributes:
        results: all that is in the folder.
        failures: {scheme: why it could not be measured}.
        warned: {scheme: warnings while it was made}.
    """

    results: Results
    failures: dict[str, str]
    warned: dict[str, tuple[str, ...]]


def sweep(
    models: Models,
    tokenizer: Any,
    candidates: Candidates,
    tasks: Sequence[str],
    out: Path,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Swept:
    """The results of every candidate on every task, in `out`.

    The float model comes first on the cheapest task of each ability, then every scheme on these, so that a first
    picture of all is there early. Then the float model's other tasks, and with their costs known the rest, cheapest
    first; schemes that have lost most of what was measured come last. A scheme that fails is noted, and the others go
    on. What the folder holds already is not measured again. Where the float model is not among the candidates, each
    scheme is measured on all tasks, the cheapest first: a part of a sweep that is merged with others.

    Raises:
        CheckpointError: the folder holds results of another model.
        BusyError: another process writes to it.
        ConfigError, MissingExtraError: as `evaluate`, before anything is loaded.
        LostProcess: another process of the run is gone.
    """
    settings = settings or Settings()
    engine.check(
        tasks,
        limit=settings.limit,
        data_dir=settings.data_dir,
        shots=settings.shots,
        has_rater=settings.rater is not None,
    )
    with writing(out if settings.ranks.is_first else None):
        return _sweep(_Run(models, tokenizer, candidates, out, settings, progress, len(candidates) * len(tasks)), tasks)


def _sweep(run: _Run, tasks: Sequence[str]) -> Swept:
    settings, candidates = run.settings, run.candidates
    work = {task: expected_work(task, settings.data_dir, settings.shots, settings.limit) for task in tasks}
    cheapest = sorted(tasks, key=work.__getitem__)
    if BASELINE not in candidates:
        for label in candidates:
            run.try_to_measure(label, cheapest)
        return run.swept()
    first = probes(cheapest, lambda task: run.measure(BASELINE, [task])[0])
    schemes = [label for label in candidates if label != BASELINE]
    for label in schemes:
        run.try_to_measure(label, first)
    rest = [task for task in cheapest if task not in first]
    if rest:
        run.measure(BASELINE, rest)
        rest = by_cost(rest, run.baseline)
        for label in settings.ranks.of_first(lambda: by_promise(schemes, read_results(run.out))):
            run.try_to_measure(label, rest)
    return run.swept()


class _Run:
    """One sweep under way: which model is loaded, what the float model scored, what failed."""

    def __init__(
        self,
        models: Models,
        tokenizer: Any,
        candidates: Candidates,
        out: Path,
        settings: Settings,
        progress: Callable[[Progress], None],
        total: int,
    ) -> None:
        self.models, self.tokenizer, self.candidates = models, tokenizer, candidates
        self.out, self.settings, self.progress, self.total = out, settings, progress, total
        self.baseline: dict[str, Record] = {}
        self.failures: dict[str, str] = {}
        self.warned: dict[str, tuple[str, ...]] = {}
        self.done: set[tuple[str, str]] = set()
        self.revision = ""
        self._loaded: tuple[str, PreTrainedModel] | None = None

    def swept(self) -> Swept:
        """What has come of it, when all processes are done."""
        self.settings.ranks.wait()
        if self.settings.ranks.is_first:
            return Swept(read_results(self.out), self.failures, self.warned)
        none = Results(self.out, self.models.name, self.revision, (), {})  # only the first process has the folder
        return Swept(none, self.failures, self.warned)

    def try_to_measure(self, label: str, tasks: Sequence[str]) -> None:
        """As `measure`, but what goes wrong is kept for later: other schemes may be fine."""
        if label in self.failures:
            return
        try:
            self.measure(label, tasks)
        except (LostProcess, Disagreement):
            raise
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            self._loaded = None
            if not isinstance(error, FailedElsewhere):
                self.settings.ranks.tell(error)
            self.failures[label] = first_line(error)

    def measure(self, label: str, tasks: Sequence[str]) -> list[Record]:
        """The scores of a scheme; its model is made only if one of them is not known."""
        known = {task: record for task in tasks if (record := self._known(label, task)) is not None}
        missing = [task for task in tasks if task not in known]
        for record in known.values():
            self._tell(record, is_new=False)
        if not missing:
            return [known[task] for task in tasks]
        model = self._model(label)
        settings, began = self.settings, len(Store(self.out).records)
        seen: list[Record] = []

        def told(record: Record) -> None:
            seen.append(record)
            self._tell(record, is_new=len(Store(self.out).records) > began)

        records = engine.evaluate(
            model,
            self.tokenizer,
            engine.Subject(label, self.models.name, self.revision),
            missing,
            limit=settings.limit,
            batch_size=settings.batch_size,
            data_dir=settings.data_dir,
            out=self.out,
            shots=settings.shots,
            chat=settings.chat,
            rater=settings.rater,
            ranks=settings.ranks,
            bars=settings.bars,
            progress=told,
        )
        if label == BASELINE:
            self.baseline.update({record.task: record for record in records})
        found = {**known, **{record.task: record for record in records}}
        return [found[task] for task in tasks]

    def _tell(self, record: Record, *, is_new: bool) -> None:
        self.done.add((record.scheme, record.task))
        self.progress(Progress(record, len(self.done), self.total, is_new))

    def _known(self, label: str, task: str) -> Record | None:
        """The score of an earlier run on the same questions as the float model's of this one."""
        baseline, config = self.baseline.get(task), self.candidates[label]
        if baseline is None or config is None or self.settings.ranks.size > 1:
            return None
        return find_known(Store(self.out).records, {**identity_of(baseline), "scheme": label}, config)

    def _model(self, label: str) -> PreTrainedModel:
        if self._loaded is not None and self._loaded[0] == label:
            return self._loaded[1]
        self._loaded = None  # before the next one is made: two may not fit
        with noted() as warned, self._one_downloads():
            model = self.models.get(self.candidates[label])
        if warned:
            self.warned[label] = tuple(dict.fromkeys(warned))
        if not self.revision:
            self.revision = revision_of(self.models.name, model)
            check_folder(self.out, self.models.name, self.revision)
        self._loaded = label, model
        if self.settings.ranks.is_first:
            self._keep_size(label, model)
        return model

    def _one_downloads(self) -> contextlib.AbstractContextManager[None]:
        """A model that comes from the Hub is fetched once for each machine."""
        first = local_folder(self.models.name) is None and not self.models.reads
        return self.settings.ranks.local_first() if first else contextlib.nullcontext()

    def _keep_size(self, label: str, model: PreTrainedModel) -> None:
        size = Size.of(report(model), self.models.name, self.revision, label)
        try:
            known = read_results(self.out).sizes.get(label)
        except CheckpointError:  # no results yet
            known = None
        if known != size:
            write_size(self.out, size)


def check_folder(out: Path, model: str, revision: str) -> None:
    """Raises CheckpointError if the folder's records are of another model."""
    for record in Store(out).records:
        if (record.model, record.revision) != (model, revision):
            raise CheckpointError(
                f"{str(out)!r} holds results of {record.model!r} ({record.revision}), and this sweep is of "
                f"{model!r} ({revision}). Give another folder with -o."
            )


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """Our own warnings as text: a sweep goes on, and says at its end what they were."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QllmWarning)
        yield found
    for warning in caught:
        if issubclass(warning.category, QllmWarning):
            found.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
