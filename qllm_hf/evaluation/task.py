"""What is known about a task besides its questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Row = dict[str, Any]
"""One line of a data set, as its authors published it."""
Document = dict[str, Any]
"""One question in the form of this package: `prompt`, `choices`, `label`, `answers`, `group`, and remarks."""

EVERY: Final = "*"
"""Every configuration of a data set on the Hub, each a subject."""


@dataclass(frozen=True)
class Source:
    """Where the rows of a task come from.

    Attributes:
        file: below a data folder, without ".jsonl": "basic_nlp/piqa".
        columns: that each row must have.
        hub: id of the data set on the Hub; "" if it is not there.
        config: its configuration, or `EVERY`.
        split: its split.
        shots_file, shots_split: where the examples of few-shot prompts are.
        home: the authors' page.
        licence: of the data.
        generated: whether rows are made here when no file is given.
    """

    file: str = ""
    columns: tuple[str, ...] = ()
    hub: str = ""
    config: str | None = None
    split: str = "validation"
    shots_file: str = ""
    shots_split: str = ""
    home: str = ""
    licence: str = ""
    generated: bool = False


@dataclass(frozen=True)
class TaskInfo:
    """One task.

    Attributes:
        ability: one of the five groups.
        metric: the one that counts; for tasks that lm_eval scores, by its name there.
        chance: what guessing gets; None if the metric is no part of right answers.
        longest: how many tokens an item may have, where that is known.
        benchmark: as the study, or its authors, call it.
        best: the highest value of the metric.
        shots: examples in front of each question.
        chat: asked as a message where the tokenizer has a chat template.
        rule: how a written answer is read (`qllm_hf.evaluation.scoring.rules`); "" if lm_eval scores.
        documents: rows and examples -> documents; None if lm_eval's own files say it.
        source: where the rows are.
        in_ability: whether the score counts for its ability.
    """

    ability: str
    metric: str
    chance: float | None
    longest: int = 0
    benchmark: str = ""
    best: float = 1.0
    shots: int = 0
    chat: bool = False
    rule: str = ""
    documents: Callable[[Sequence[Row], Sequence[Row]], list[Document]] | None = None
    source: Source = field(default_factory=Source)
    in_ability: bool = True
