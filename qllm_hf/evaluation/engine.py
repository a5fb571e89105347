"""Scores of a model: lm_eval asks the questions, the model answers with its quantized weights and keys and values.

Nothing in lm_eval has to know of quantization. Where K and V exist they are quantized, with a cache and without one
(`qllm_hf.hooks`), so log-likelihoods see KV bits as generated texts do. What an answer is worth is decided by
`qllm_hf.evaluation.scoring`, as in the evaluate modules.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from ..errors import ConfigError, QllmWarning
from ..revision import revision_of
from .answers import Journal, digest
from .dialogue import LOOKED_AT, RATED, Rater, prepare, read_questions
from .harness import SHOTS_SEED, lm_eval, load_task, quiet_lm_eval
from .miniature import MINIATURE
from .provenance import hardware, versions
from .questions import questions_of
from .ranks import Ranks
from .record import Record
from .registry import find_task
from .samples import Prepared, Scored, read_samples
from .sources import digest_of
from .store import Store, writing
from .task import TaskInfo

SEEDS: Final = {"generation": 0, "shots": SHOTS_SEED}


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
        limit: the first items of each task only; the records are marked as partial if there are more.
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
        BusyError: another process writes to `out`.
        LostProcess, FailedElsewhere, Disagreement: another process of the run is gone, failed, or has other files.
    """
    ranks = Ranks() if ranks is None else ranks
    with ranks.local_first():
        infos = check(tasks, limit=limit, data_dir=data_dir, shots=shots, has_rater=rater is not None)
    from .lm import QllmLM

    if isinstance(subject, str):
        subject = Subject(subject)
    measured = {
        "model": subject.model,
        "revision": subject.revision or revision_of(subject.model, model),
        "scheme": subject.scheme,
        "quantization": _quantization(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    where = {"versions": versions(), "hardware": hardware(model.device), "seeds": SEEDS}
    _agree(ranks, measured, where, {"tasks": list(infos), "limit": limit, "batch_size": batch_size, "shots": shots})
    records = []
    folder = None if out is None else Path(out).expanduser()
    with writing(folder if ranks.is_first else None), quiet_lm_eval():
        store = Store(folder)
        lm = QllmLM(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size or "auto",
            journal=Journal(store.answers, ranks.rank),
            ranks=ranks,
            fingerprint=digest(measured, where["versions"]),
            bars=bars,
        )
        for task, info in infos.items():
            prepared, identity = _question(task, info, lm, tokenizer, limit, data_dir, shots, chat, rater)
            identity = {**measured, **identity}
            part = identity["limit"]
            ranks.agree({f"{task}: {key}": value for key, value in identity.items() if key not in measured})
            record = _known(store, identity, ranks)
            if record is None:
                lm.label = f"{subject.scheme} {task}"
                lm.start_counting()
                scores, samples = prepared.ask(part)
                record = _record(info, identity, where, lm.usage, scores, samples)
                if ranks.is_first:
                    store.add(record, samples)
            progress(record)
            records.append(record)
        ranks.wait()
        lm.journal.drop(tidy=not ranks.is_first)
    return records


def check(
    tasks: Iterable[str],
    *,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    shots: int | None = None,
    has_rater: bool = False,
) -> dict[str, TaskInfo]:
    """{task: what is known about it}, after everything was looked at that needs no model, all rows among it.

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
    lm_eval("evaluator")
    problems: dict[str, ConfigError] = {}
    for task in infos:
        try:
            if task in (RATED, LOOKED_AT):
                read_questions(data_dir)
            else:
                questions_of(task, data_dir, shots)
        except ConfigError as error:
            problems[task] = error
    if len(problems) > 1:
        first = next(iter(problems.values()))
        raise ConfigError(
            f"{first} In all, {len(problems)} tasks have rows that are missing or damaged; to leave them out: "
            f"--without {','.join(problems)}"
        ) from first
    for problem in problems.values():
        raise problem
    return infos


def identities(
    tasks: Iterable[str],
    tokenizer: Any,
    *,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    shots: int | None = None,
    chat: bool = True,
) -> dict[str, dict[str, Any]]:
    """{task: what its record will say was asked}, without a model: which scores are known can be told before one loads.

    Raises:
        ConfigError, MissingExtraError: as `evaluate`.
    """
    with quiet_lm_eval():
        return {
            task: _question(task, find_task(task), None, tokenizer, limit, data_dir, shots, chat, None)[1]
            for task in tasks
        }


def _question(
    task: str,
    info: TaskInfo,
    lm: Any,
    tokenizer: Any,
    limit: int | None,
    data_dir: str | Path | None,
    shots: int | None,
    chat: bool,
    rater: Rater | None,
) -> tuple[Prepared, dict[str, Any]]:
    """A task, ready to be asked, and what tells its records from others, besides the model."""
    as_chat = info.chat and chat and bool(tokenizer.chat_template)
    if task in (RATED, LOOKED_AT):
        prepared = prepare(task, lm, data_dir, as_chat, rater)
    else:
        prepared = _prepare(task, info, lm, data_dir, shots, as_chat)
    part = None if limit is None or limit >= prepared.size else limit
    return prepared, {"task": task, "metric": info.metric, "limit": part, **prepared.identity}


def _prepare(
    task: str, info: TaskInfo, lm: Any, data_dir: str | Path | None, shots: int | None, chat: bool
) -> Prepared:
    """A task of lm_eval, ready to be asked."""
    loaded = load_task(task, data_dir, shots)

    def ask(limit: int | None) -> Scored:
        return read_samples(task, info, loaded.ask(lm, limit, chat=chat))

    identity = {
        "task_version": loaded.version,
        "shots": loaded.shots,
        "chat": chat,
        "data": loaded.data,
        "judge": "",
    }
    return Prepared(identity, loaded.size, ask)


def _agree(ranks: Ranks, measured: dict[str, Any], where: dict[str, Any], asked: dict[str, Any]) -> None:
    """All processes must have the same libraries, model and questions; their names and folders may be their own.

    Raises:
        Disagreement: they have not.
    """
    model = {key: value for key, value in measured.items() if key != "model"}
    ranks.agree({**{f"the version of {key}": value for key, value in where["versions"].items()}, **model, **asked})
    if found := ranks.differing(where["hardware"]):
        warnings.warn(
            "the processes of this run have different processors or numbers of threads, so the last bits of a score "
            f"may not be those of one machine alone: {'; '.join(f'{name}: {has}' for name, has in found.items())}.",
            QllmWarning,
            stacklevel=3,
        )


def _known(store: Store, identity: dict[str, Any], ranks: Ranks) -> Record | None:
    """The record of an earlier run; in all processes what the first one finds, as others may not see its folder."""
    found = store.find(identity)
    if ranks.size == 1:
        return found
    entry = ranks.of_first(lambda: None if found is None else found.to_json())
    return None if entry is None else Record.from_json(entry)


def _record(
    info: TaskInfo,
    identity: dict[str, Any],
    where: dict[str, Any],
    usage: dict[str, Any],
    scores: dict[str, Any],
    samples: list[dict[str, Any]],
) -> Record:
    counted = dict(usage)
    return Record(
        ability=info.ability,
        chance=info.chance,
        best=info.best,
        in_ability=info.in_ability,
        cut=int(counted.pop("cut")),
        seconds=round(counted.pop("seconds"), 3),
        usage={key: int(value) for key, value in counted.items()},
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        samples=digest_of(samples),
        **identity,
        **where,
        **scores,
    )


def _quantization(model: PreTrainedModel) -> dict[str, Any]:
    """The config of a quantized model as JSON holds it; {} for a float model."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return {}
    found: dict[str, Any] = json.loads(json.dumps(quantizer.quantization_config.to_dict(), default=str))
    return found
