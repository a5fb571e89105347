"""What lm_eval's task files call: the documents of a benchmark, and the mark of one answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import ConfigError
from ..shown import short_text
from .documents.emergent import first_shots
from .documents.long_context import generate_key_value, generate_lines
from .registry import find_task, size_of
from .scoring.rules import RULES
from .sources import Rows, digest_of, read_rows, read_shots
from .study import KEYS, LINES
from .task import Document, Row, TaskInfo
from .upstream import FOLDERS, prepare

GENERATED_ROWS: Final = 500
"""Items of a benchmark that is made here, as many as the study had for each length."""

_GENERATORS: Final[dict[str, Callable[[int, int], list[Row]]]] = {LINES: generate_lines, KEYS: generate_key_value}
_SIZE_COLUMN: Final = {LINES: "num_lines", KEYS: "num_keys"}


def documents_of(
    task: str, data_dir: str | Path | None = None, shots: int | None = None
) -> tuple[list[Document], Rows]:
    """The documents of a task, and the rows they were made from.

    Args:
        task: an id with `documents` in its table.
        data_dir: the folder with rows; None reads the Hub, or makes rows.
        shots: examples in front of each question; by default as in the study.

    Raises:
        ConfigError: rows cannot be had (`qllm_hf.evaluation.sources`), or cannot be what they should be.
    """
    info = find_task(task)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    family = next((prefix for prefix in _GENERATORS if task.startswith(prefix)), None)
    if family is None:
        found = read_rows(task, info.source, folder)
    else:
        found = _of_size(family, size_of(task), lambda make: read_rows(task, info.source, folder, make))
    number = _shown(info, shots)
    examples: list[Row] = []
    if number:
        given = read_shots(task, info.source, folder)
        examples = first_shots(given.rows, number)
        if info.source.shots_file == info.source.file:
            found = Rows(found.rows[len(examples) :], found.origin)
        _check_shots(task, number, Rows(examples, given.origin), found.rows)
    if not found.rows:
        raise ConfigError(f"{task}: shots={number} takes all rows as examples, and none is left to ask. Take fewer.")
    if info.documents is None:
        raise ConfigError(f"{task}: its questions are in a file of lm_eval, not here.")
    try:
        documents = info.documents(found.rows, examples)
    except (KeyError, ValueError, IndexError, TypeError, AttributeError, OverflowError) as error:
        said = short_text(f"{type(error).__name__}: {error}")
        raise ConfigError(f"{task}: a row of {found.origin} is not as its benchmark has it ({said}).") from error
    return [{"id": number, "rule": info.rule, **document} for number, document in enumerate(documents)], found


def _of_size(family: str, size: int, read: Callable[[Callable[[], list[Row]]], Rows]) -> Rows:
    """The rows of a file that have this size; made here if there are none."""

    def make() -> list[Row]:
        return _GENERATORS[family](size, GENERATED_ROWS)

    found = read(make)
    rows = [row for row in found.rows if row.get(_SIZE_COLUMN[family]) == size]
    return Rows(rows, found.origin) if rows else Rows(make(), "generated")


def dataset(task: str, data_dir: str | None = None, shots: int | None = None, **_: Any) -> dict[str, Any]:
    """{"test": the documents of a task}: what `custom_dataset` of the study's YAML files names."""
    from datasets import Dataset

    return {"test": Dataset.from_list(documents_of(task, data_dir, shots)[0])}


class Questions(NamedTuple):
    """What a task asks, by the splits of its lm_eval file, and where it comes from.

    Attributes:
        parts: "test", and "train" where lm_eval itself takes examples from.
        rows: as they were read.
        shots: examples in front of each question.
    """

    parts: dict[str, list[Document]]
    rows: Rows
    shots: int

    @property
    def data(self) -> dict[str, str]:
        """Where the rows are from, and a digest of all that is asked, the examples included."""
        return {"origin": self.rows.origin, "digest": digest_of([row for part in self.parts.values() for row in part])}


def questions_of(task: str, data_dir: str | Path | None = None, shots: int | None = None) -> Questions | None:
    """The questions of a task; None if they come with it (miniature tasks), or lm_eval's file fetches them itself.

    Raises:
        ConfigError: as `documents_of`.
    """
    info = find_task(task)
    if info.documents is not None:
        documents, rows = documents_of(task, data_dir, shots)
        return Questions({"test": documents}, rows, _shown(info, shots))
    if task not in FOLDERS or data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    rows = read_rows(task, info.source, folder)
    parts = {"test": prepare(task, rows.rows)}
    if info.source.shots_file:
        parts["train"] = read_shots(task, info.source, folder).rows
    return Questions(parts, rows, _shown(info, shots))


def _shown(info: TaskInfo, shots: int | None) -> int:
    """How many examples stand in front of a question: none where a benchmark has none to take."""
    return 0 if not info.shots else info.shots if shots is None else shots


def _check_shots(task: str, number: int, examples: Rows, rows: list[Row]) -> None:
    """Raises ConfigError if a subject that is asked about has fewer examples than are wanted."""
    there = Counter(str(row.get("subject", "")) for row in examples.rows)
    for subject in sorted({str(row.get("subject", "")) for row in rows}):
        if there[subject] < number:
            of_subject = f" of {short_text(repr(subject))}" if subject else ""
            raise ConfigError(
                f"{task}: shots={number}, and there are {there[subject]} examples{of_subject} in {examples.origin}. "
                "Take fewer."
            )


def prediction(doc: Mapping[str, Any], results: Sequence[Any]) -> str:
    """What the model answered: its text, or the number of the text with the lowest mean loss per token.

    Where whole texts are compared (an empty prompt) the mean counts the token in front of the text as well, as the
    study's code does.

    Raises:
        ConfigError: the log-likelihoods do not say of how many tokens they are.
    """
    if not doc["choices"]:
        return str(results[0])
    losses = []
    for result in results:
        tokens = getattr(result, "tokens", None)
        if tokens is None:
            raise ConfigError(
                "these tasks compare losses per token, and this model does not count tokens. Use "
                "`qllm-hf evaluate`, or lm_eval with model='qllm' after `import qllm_hf.evaluation.lm`."
            )
        losses.append(-result[0] / (tokens + (not doc["prompt"])))
    return str(min(range(len(losses)), key=losses.__getitem__))


def mark(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """{"acc": what an answer is worth}: `process_results` of the study's YAML files."""
    value = RULES[doc["rule"]](prediction(doc, results), doc["answers"]).value
    return {"acc": 0.0 if value is None else value}
