"""lm_eval as a library: its tasks and ours with rows from anywhere, asked quietly."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import ConfigError, MissingExtraError
from .miniature import MINIATURE
from .questions import Questions, questions_of
from .registry import find_task
from .sources import first_line
from .study import KEYS, LINES
from .upstream import FOLDERS, task_folders

TASK_FOLDER: Final = Path(__file__).parent / "tasks"
SHOTS_SEED: Final = 1234
"""lm_eval's own default, for the examples that it draws."""


class LoadedTask(NamedTuple):
    """A task of lm_eval that can be asked.

    Attributes:
        tasks: as lm_eval's `evaluate` takes it.
        version: of its questions and rules.
        shots: examples in front of each question.
        data: origin and digest of its questions.
        size: how many items there are.
    """

    tasks: dict[str, Any]
    version: str
    shots: int
    data: dict[str, str]
    size: int

    def ask(self, lm: Any, limit: int | None, *, chat: bool) -> list[dict[str, Any]]:
        """What lm_eval logs of each item."""
        results = lm_eval("evaluator").evaluate(
            lm, {"tasks": self.tasks}, limit=limit, bootstrap_iters=0, log_samples=True, apply_chat_template=chat
        )
        samples: list[dict[str, Any]]
        (samples,) = results["samples"].values()
        return samples


def load_task(task: str, data_dir: str | Path | None, shots: int | None) -> LoadedTask:
    """A task with its questions.

    Raises:
        ConfigError: its rows cannot be had.
    """
    questions = questions_of(task, data_dir, shots)
    overrides = {} if questions is None else _replacing(questions)
    if questions is not None:
        shown = questions.shots
        data = questions.data
        overrides |= {"num_fewshot": shown} if task in FOLDERS else {}
    elif task in MINIATURE:
        shown, data = 0, {"origin": "built in", "digest": ""}
    else:
        shown = find_task(task).shots if shots is None else shots
        overrides = {"num_fewshot": shown}
        data = {"origin": f"hub {find_task(task).source.hub}", "digest": ""}
    folders = [TASK_FOLDER, *(task_folders([task]) if task in FOLDERS else [])]
    manager = lm_eval("tasks").TaskManager(include_path=folders, include_defaults=False)
    # a task inside a group is how lm_eval takes replacements of a task that has a file
    spec: Any = {"group": "run", "task": [{"task": nearest_file(task), **overrides}]} if overrides else task
    try:
        tasks = manager.load([spec])["tasks"]
    except (OSError, ConnectionError) as error:
        raise ConfigError(
            f"{task}: the Hub did not give its data set ({first_line(error)}). Offline, give a data folder with "
            f"{find_task(task).source.file}.jsonl (--data-dir)."
        ) from error
    (loaded,) = tasks.values()
    # lm_eval's command line does so; without it the examples of its own tasks are others in every run
    loaded.set_fewshot_seed(seed=SHOTS_SEED)
    return LoadedTask(tasks, str(loaded.VERSION), shown, data, len(loaded.eval_docs))


def nearest_file(task: str) -> str:
    """The task whose file in lm_eval's form serves for this one: `qllm_lines_123` has none of its own."""
    sized = {LINES: f"{LINES}200", KEYS: f"{KEYS}75"}
    return next((like for prefix, like in sized.items() if task.startswith(prefix)), task)


def _replacing(questions: Questions) -> dict[str, Any]:
    """Settings of lm_eval that put these rows in place of a data set."""

    def rows(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(part) for split, part in questions.parts.items()}

    return {
        "custom_dataset": rows,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "train" if "train" in questions.parts else None,
    }


def lm_eval(module: str) -> Any:
    """A module of lm_eval.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(f"lm_eval.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        raise MissingExtraError("scores need lm_eval, which is not installed: pip install 'qllm-hf[eval]'.") from error


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Leaves lm_eval only its errors: it reports every default it takes, and draws several bars for every task.

    So does datasets, which it has prepare the rows.
    """
    import datasets

    logger = logging.getLogger("lm_eval")
    level = logger.level
    drawing = [lm_eval(module) for module in ("api.task", "api.model", "models.huggingface")]
    bar = drawing[0].tqdm
    had_no_bars = datasets.are_progress_bars_disabled()

    def no_bar(*arguments: Any, **options: Any) -> Any:
        return bar(*arguments, **{**options, "disable": True})

    logger.setLevel(logging.ERROR)
    for module in drawing:
        module.tqdm = no_bar
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not had_no_bars:
            datasets.enable_progress_bars()
        logger.setLevel(level)
        for module in drawing:
            module.tqdm = bar
