"""Scores of a model: lm_eval asks the questions, the model answers with its quantized weights and keys and values.

Nothing in lm_eval has to know of quantization. Where K and V exist they are quantized, with a cache and without one
(`qllm_hf.hooks`), so log-likelihoods see KV bits as generated texts do. What an answer is worth is decided by
`qllm_hf.evaluation.scoring`, as in the evaluate modules.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from ..errors import ConfigError, MissingExtraError
from .answers import Journal, digest
from .dialogue import LOOKED_AT, RATED, Rater, Scored, prepare
from .miniature import MINIATURE
from .provenance import hardware, revision_of, versions
from .questions import documents_of, upstream_rows
from .ranks import Ranks
from .record import Record
from .registry import find_task
from .samples import read_samples
from .sources import first_line, read_shots
from .store import Store
from .study import KEYS, LINES
from .task import TaskInfo
from .upstream import FOLDERS, task_folders

TASK_FOLDER: Final = Path(__file__).parent / "tasks"
SEEDS: Final = {"generation": 0}


@dataclass(frozen=True)
class Subject:
    """What is measured, for the records: they say it of the scores, and it changes nothing.

    Attributes:
        scheme: such as "W4KV8".
        model: a folder or an id; "" for a model that has none.
        revision: commit or digest; found from the folder if it is not given.
    """

    scheme: str
    model: str = ""
    revision: str = ""


def evaluate(
    model: PreTrainedModel,
    tokenizer: Any,
    subject: str | Subject,
    tasks: Iterable[str] = MINIATURE,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[Record], None] = lambda record: None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    shots: int | None = None,
    chat: bool = True,
    rater: Rater | None = None,
    ranks: Ranks | None = None,
    bars: bool = False,
) -> list[Record]:
    """The scores of a model, one record per task, in the order of `tasks`.

    Args:
        model: quantized or not.
        tokenizer: that belongs to it.
        subject: what the records are to say of the model: its scheme, or more of it.
        tasks: ids of `qllm_hf.evaluation.registry.TASKS`.
        limit: the first items of each task only; the records are marked as partial.
        batch_size: items at once; by default by their tokens (`qllm_hf.evaluation.batches`).
        progress: is called with each record when it is there.
        data_dir: a folder with the rows of the benchmarks; by default they come from the Hub.
        out: a folder for records, samples and answers. What it holds already is not asked again, and a run that was
            stopped goes on where it was.
        shots: examples in front of each question, instead of the study's number.
        chat: ask in the model's chat template where the study did, if there is one.
        rater: rates the answers of MT-Bench.
        ranks: the processes that share the work.
        bars: draw a progress bar for each task.

    Raises:
        ConfigError: an unknown task, a limit below 2, which gives no standard error, rows that cannot be used, or
            MT-Bench without a judge.
        MissingExtraError: lm_eval is not installed.
        LostProcess: another process of the run is gone.
    """
    infos = check(tasks, limit=limit, has_rater=rater is not None)
    from .lm import QllmLM

    if isinstance(subject, str):
        subject = Subject(subject)
    subject = replace(subject, revision=subject.revision or revision_of(subject.model, model))
    store = Store(None if out is None else Path(out).expanduser())
    ranks = ranks or Ranks()
    dtype = str(model.dtype).removeprefix("torch.")
    quantization = _quantization(model)
    found_versions = versions()
    records = []
    with quiet_lm_eval():
        lm = QllmLM(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size or "auto",
            journal=Journal(store.answers, ranks.rank),
            ranks=ranks,
            fingerprint=digest(subject.model, subject.revision, subject.scheme, quantization, dtype, found_versions),
            bars=bars,
        )
        for task, info in infos.items():
            as_chat = info.chat and chat and _has_template(tokenizer)
            if task in (RATED, LOOKED_AT):
                identity, ask = prepare(task, lm, data_dir, limit, as_chat, rater)
            else:
                identity, ask = _Run(lm, task, info, limit, data_dir, shots, as_chat).prepare()
            identity = {
                "model": subject.model,
                "revision": subject.revision,
                "scheme": subject.scheme,
                "quantization": quantization,
                "dtype": dtype,
                "task": task,
                "metric": info.metric,
                "limit": limit,
                "judge": "",
                **identity,
            }
            known = store.find(identity)
            if ranks.size > 1:  # the first process knows; another node may not see its folder
                known_task = ranks.share({0: None if known is None else known.to_json()} if ranks.is_first else {})[0]
                known = None if known_task is None else Record.from_json(known_task)
            if known is None:
                lm.label = f"{subject.scheme} {task}"
                lm.start_counting()
                scores, samples = ask()
                usage = dict(lm.usage)
                known = Record(
                    ability=info.ability,
                    chance=info.chance,
                    best=info.best,
                    in_ability=info.in_ability,
                    cut=int(usage.pop("cut")),
                    seconds=round(usage.pop("seconds"), 3),
                    usage={key: int(value) for key, value in usage.items()},
                    seeds=SEEDS,
                    versions=found_versions,
                    hardware=hardware(model.device),
                    date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    **identity,
                    **scores,
                )
                if ranks.is_first:
                    store.add(known, samples)
            progress(known)
            records.append(known)
    ranks.wait()
    if ranks.is_first:
        lm.journal.drop()
    return records


def check(tasks: Iterable[str], *, limit: int | None = None, has_rater: bool = False) -> dict[str, TaskInfo]:
    """{task: what is known about it}, after everything was looked at that needs no model.

    Raises:
        ConfigError, MissingExtraError: as `evaluate`.
    """
    infos = {task: find_task(task) for task in tasks}
    if limit is not None and limit < 2:
        raise ConfigError(f"limit={limit} items give no standard error. Give at least 2, or no limit.")
    if RATED in infos and not has_rater:
        raise ConfigError(
            f"{RATED} needs a judge that rates the answers (--judge URL or MODEL). Without one, {LOOKED_AT} looks at "
            "them for repetition and garbage."
        )
    _lm_eval("evaluator")
    return infos


@dataclass(frozen=True)
class _Run:
    """One task that lm_eval asks."""

    lm: Any
    task: str
    info: TaskInfo
    limit: int | None
    data_dir: str | Path | None
    shots: int | None
    chat: bool

    def prepare(self) -> tuple[dict[str, Any], Callable[[], Scored]]:
        """(what tells this record from others, the function that asks and scores)."""
        name, overrides, data = self._spec()
        spec: dict[str, Any] = {"group": "run", "task": [{"task": name, **overrides}]} if overrides else {}
        folders = [TASK_FOLDER, *(task_folders([self.task]) if self.task in FOLDERS else [])]
        manager = _lm_eval("tasks").TaskManager(include_path=folders, include_defaults=False)
        loaded = _loaded(manager, spec or name, self.task)
        (task,) = loaded["tasks"].values()
        identity = {
            "task_version": str(task.VERSION),
            "shots": self.info.shots if self.shots is None else self.shots,
            "chat": self.chat,
            "data": data,
        }

        def ask() -> Scored:
            results = _lm_eval("evaluator").evaluate(
                self.lm,
                {"tasks": loaded["tasks"]},
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.chat,
            )
            (samples,) = results["samples"].values()
            return read_samples(self.task, self.info, samples)

        return identity, ask

    def _spec(self) -> tuple[str, dict[str, Any], dict[str, str]]:
        """(name in lm_eval's files, what replaces their settings, origin and digest of the items)."""
        if self.info.documents is not None:
            documents, rows = documents_of(self.task, self.data_dir, self.shots)
            known = nearest_file(self.task)
            return known, _replacing({"test": documents}), {"origin": rows.origin, "digest": rows.digest}
        overrides: dict[str, Any] = {}
        data = {"origin": "built in" if self.task in MINIATURE else f"hub {self.info.source.hub}", "digest": ""}
        if self.task in FOLDERS and self.data_dir is not None:
            documents, rows = upstream_rows(self.task, self.data_dir)
            shots = self.info.source.shots_file
            parts = {"test": documents}
            if shots:
                parts["train"] = read_shots(self.task, self.info.source, Path(self.data_dir).expanduser()).rows
            overrides = {
                **_replacing(parts),
                "training_split": None,
                "validation_split": None,
                "test_split": "test",
                "fewshot_split": "train" if shots else None,
            }
            data = {"origin": rows.origin, "digest": rows.digest}
        if self.shots is not None and self.task in FOLDERS:
            overrides["num_fewshot"] = self.shots
        return self.task, overrides, data


def nearest_file(task: str) -> str:
    """The task whose file in lm_eval's form serves for this one: `qllm_lines_123` has none of its own."""
    sized = {LINES: f"{LINES}200", KEYS: f"{KEYS}75"}
    return next((like for prefix, like in sized.items() if task.startswith(prefix)), task)


def _replacing(parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Settings of lm_eval that put these rows in place of a data set."""

    def rows(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(part) for split, part in parts.items()}

    return {"custom_dataset": rows}


def _loaded(manager: Any, spec: Any, task: str) -> Any:
    """What the manager loads; data sets that cannot be had are said in one sentence."""
    try:
        return manager.load([spec])
    except (OSError, ConnectionError) as error:
        raise ConfigError(
            f"{task}: the Hub did not give its data set ({first_line(error)}). "
            "Offline, give a data folder (--data-dir)."
        ) from error


def _quantization(model: PreTrainedModel) -> dict[str, Any]:
    """The config of a quantized model as JSON holds it; {} for a float model."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    return (
        {} if quantizer is None else dict(json.loads(json.dumps(quantizer.quantization_config.to_dict(), default=str)))
    )


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _lm_eval(module: str) -> Any:
    try:
        return import_module(f"lm_eval.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        raise MissingExtraError("scores need lm_eval, which is not installed: pip install 'qllm-hf[eval]'.") from error


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Leaves lm_eval only its errors: it reports every default it takes, and draws several bars for every task."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    drawing = [_lm_eval(module) for module in ("api.task", "api.model", "models.huggingface")]
    bar = drawing[0].tqdm

    def no_bar(*arguments: Any, **options: Any) -> Any:
        return bar(*arguments, **{**options, "disable": True})

    logger.setLevel(logging.ERROR)
    for module in drawing:
        module.tqdm = no_bar
    try:
        yield
    finally:
        logger.setLevel(level)
        for module in drawing:
            module.tqdm = bar
