"""Scores of a model: lm_eval asks the questions, the model answers with its quantized weights and keys and values.

Nothing in lm_eval has to know of quantization. Where K and V exist they are quantized, with a cache and without one
(`qllm_hf.hooks`), so its log-likelihoods see KV bits as its generated texts do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from ..errors import ConfigError, MissingExtraError, did_you_mean
from .miniature import MINIATURE
from .record import Record

TASK_FOLDER: Final = Path(__file__).parent / "tasks"
TOKENS_AT_ONCE: Final = 8192
"""Of a batch, padding included, unless the batch size is given."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: Any,
    scheme: str,
    tasks: Iterable[str] = MINIATURE,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """The scores of a model, one record per task, in the order of `tasks`.

    Args:
        model: quantized or not.
        tokenizer: that belongs to it.
        scheme: what the records are to say of the model; it changes nothing.
        tasks: ids of `MINIATURE`.
        limit: the first items of each task only.
        batch_size: items at once; by default as many as have `TOKENS_AT_ONCE` tokens.
        progress: is called with each record when it is there.

    Raises:
        ConfigError: an unknown task, or a limit below 2, which gives no standard error.
        MissingExtraError: lm_eval is not installed.
    """
    tasks = list(tasks)
    for name in tasks:
        if name not in MINIATURE:
            raise ConfigError(
                f"there is no task {name!r}.{did_you_mean(name, MINIATURE)} Tasks: {', '.join(MINIATURE)}."
            )
    if limit is not None and limit < 2:
        raise ConfigError(f"limit={limit} items give no standard error. Give at least 2, or no limit.")
    with _quiet_lm_eval():
        evaluator, manager = (
            _lm_eval("evaluator"),
            _lm_eval("tasks").TaskManager(include_path=TASK_FOLDER, include_defaults=False),
        )
        records = []
        for name in tasks:
            info = MINIATURE[name]
            answering = _answering(model, tokenizer, batch_size or max(1, TOKENS_AT_ONCE // info.longest))
            results = evaluator.evaluate(answering, manager.load([name]), limit=limit, log_samples=False)
            scores = results["results"][name]
            record = Record(
                scheme=scheme,
                ability=info.ability,
                task=name,
                metric=info.metric,
                value=float(scores[f"{info.metric},none"]),
                stderr=float(scores[f"{info.metric}_stderr,none"]),
                items=int(results["n-samples"][name]["effective"]),
                chance=info.chance,
            )
            progress(record)
            records.append(record)
    return records


def _answering(model: PreTrainedModel, tokenizer: Any, batch_size: int) -> Any:
    """The model as lm_eval sees it."""
    return _lm_eval("models.huggingface").HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _lm_eval(module: str) -> Any:
    try:
        return import_module(f"lm_eval.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        raise MissingExtraError("scores need lm_eval, which is not installed: pip install 'qllm-hf[eval]'.") from error


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
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
