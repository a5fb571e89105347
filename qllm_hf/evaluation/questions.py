"""What lm_eval's task files call: the documents of a benchmark, and the mark of one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from .documents.emergent import first_shots
from .documents.long_context import generate_key_value, generate_lines
from .registry import find_task, size_of
from .scoring.rules import RULES
from .sources import Rows, read_rows, read_shots
from .study import KEYS, LINES
from .task import Document, Row
from .upstream import prepare

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
    number = info.shots if shots is None else shots
    examples: list[Row] = []
    if info.source.shots_file and number:
        examples = first_shots(read_shots(task, info.source, folder).rows, number)
        if info.source.shots_file == info.source.file:
            found = Rows(found.rows[len(examples) :], found.origin)
    if info.documents is None:
        raise ConfigError(f"{task}: its questions are in a file of lm_eval, not here.")
    try:
        documents = info.documents(found.rows, examples)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"{task}: a row of {found.origin} is not as its benchmark has it ({type(error).__name__}: {error})."
        ) from error
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


def upstream_rows(task: str, data_dir: str | Path) -> tuple[list[Document], Rows]:
    """Rows of a data folder for a task of lm_eval, as its file expects them, and as they were read."""
    found = read_rows(task, find_task(task).source, Path(data_dir).expanduser())
    return prepare(task, found.rows), found


def upstream_dataset(task: str, data_dir: str, split: str, shots_split: str = "", **_: Any) -> dict[str, Any]:
    """The same as a dataset whose split has the name that lm_eval's file asks for."""
    from datasets import Dataset

    parts = {split: Dataset.from_list(upstream_rows(task, data_dir)[0])}
    if shots_split:
        folder = Path(data_dir).expanduser()
        parts[shots_split] = Dataset.from_list(read_shots(task, find_task(task).source, folder).rows)
    return parts


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
