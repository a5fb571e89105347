"""What one machine of a sweep does: it opens the model under one scheme, and hands out each score when it is there.

Nothing here knows who asks. What comes out is small and whole: the records and samples travel, no folder is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import QllmConfig
from ..evaluation import engine
from ..evaluation.lines import read_lines
from ..evaluation.provenance import versions
from ..evaluation.sources import first_line
from ..evaluation.store import Store
from ..loading import load_tokenizer, local_folder, model_on_meta
from ..reporting.model import report
from ..results import Size
from ..revision import revision_of
from ..scratch import temporary_folder
from ..sweep.models import Models
from ..sweep.run import noted
from ..sweep.schedule import is_informative


@dataclass(frozen=True)
class Subject:
    """The model of a sweep, as every machine opens it.

    Attributes:
        name: what the records call it.
        where: the same, with a folder's path in full: a worker runs in another folder.
        dtype, device_map, trust_remote_code: as `qllm_hf.loading.load_model`.
    """

    name: str
    where: str
    dtype: str = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, name: str, **options: Any) -> Subject:
        """The model with this name here.

        Raises:
            CheckpointError: there is none.
        """
        folder = Path(name).expanduser()
        return cls(name, str(folder.resolve()) if local_folder(name) == folder else name, **options)


@dataclass(frozen=True)
class Asked:
    """How every scheme is asked; as in `qllm_hf.evaluation.engine.evaluate`. `data_dir` is a path in full."""

    limit: int | None = None
    batch_size: int | None = None
    data_dir: str | None = None
    shots: int | None = None
    chat: bool = True


@dataclass(frozen=True)
class Order:
    """One job as it travels to a machine.

    Attributes:
        subject, asked: the same for all jobs.
        label, config: the scheme; None is the float model.
        tasks: in their order.
        probing: whether to stop after the first task that can show a loss.
        threads: of the processor, for this job alone; None leaves what there is.
    """

    subject: Subject
    asked: Asked
    label: str
    config: QllmConfig | None
    tasks: tuple[str, ...]
    probing: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Made:
    """The model is loaded: what it takes, which files it is made of, what was warned of meanwhile."""

    size: dict[str, Any]
    warned: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One task is done: the record, and the lines of its samples."""

    record: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Failed:
    """The job cannot be done: why, and whether another try may go better (no memory was left)."""

    why: str
    again: bool


@dataclass(frozen=True)
class Seen:
    """What a machine has: two that differ in it would give scores that cannot be compared.

    Attributes:
        revision: of the model's files.
        versions: of the libraries.
        asks: {task: what its record will say was asked}: rows, examples, rules.
    """

    revision: str
    versions: dict[str, str]
    asks: dict[str, dict[str, Any]]


def measure(order: Order) -> Iterator[Made | Scored | Failed]:
    """What comes of a job, step by step; an error is its last step and is not raised."""
    try:
        with temporary_folder("qllm-job") as folder:
            yield from _measure(order, folder)
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        yield Failed(first_line(error), again=isinstance(error, MemoryError | torch.OutOfMemoryError))


def _measure(order: Order, folder: Path) -> Iterator[Made | Scored]:
    subject, asked = order.subject, order.asked
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    models = Models(
        subject.where,
        keep=False,  # the memory that was asked for is that of this job alone
        dtype=subject.dtype,
        device_map=subject.device_map or own_devices(),
        trust_remote_code=subject.trust_remote_code,
    )
    tokenizer = load_tokenizer(subject.where, trust_remote_code=subject.trust_remote_code)
    with noted() as warned:
        model = models.get(order.config)
    revision = revision_of(subject.where, model)
    size = Size.of(report(model), subject.name, revision, order.label)
    yield Made(asdict(size), tuple(dict.fromkeys(warned)))
    for task in order.tasks:
        (record,) = engine.evaluate(
            model,
            tokenizer,
            engine.Subject(order.label, subject.name, revision),
            [task],
            batch_size=asked.batch_size,
            chat=asked.chat,
            out=folder,
            **_questions(asked),
        )
        yield Scored(record.to_json(), read_lines(Store(folder).samples(record)))
        if order.probing and is_informative(record):
            return


def look(subject: Subject, asked: Asked, tasks: tuple[str, ...]) -> Seen | Failed:
    """What this machine has of all that the tasks need: model files, rows, libraries."""
    try:
        engine.check(tasks, **_questions(asked))
        tokenizer = load_tokenizer(subject.where, trust_remote_code=subject.trust_remote_code)
        shapes = model_on_meta(subject.where, dtype=subject.dtype, trust_remote_code=subject.trust_remote_code)
        asks = engine.identities(tasks, tokenizer, chat=asked.chat, **_questions(asked))
        return Seen(revision_of(subject.where, shapes), versions(), asks)
    except (ValueError, RuntimeError, OSError) as error:
        return Failed(first_line(error), again=False)


def _questions(asked: Asked) -> dict[str, Any]:
    return {"limit": asked.limit, "data_dir": asked.data_dir, "shots": asked.shots}


def own_devices() -> str | None:
    """Where a job's weights go: the accelerators that it was given; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return "cuda:0" if torch.cuda.device_count() == 1 else "auto"
