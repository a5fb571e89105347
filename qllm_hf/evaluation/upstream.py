"""Tasks that are lm_eval's own: those of the study that it scores alike, and its variants of others.

Their questions and scores are lm_eval's files, by lm_eval's ids. Only the rows can come from a data folder instead of
the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .documents import nlp
from .task import Row, Source, TaskInfo

_TRUTHFUL: Final = Source(
    file="trustworthiness/truthfulqa_mc",
    columns=("question", "mc1_targets", "mc2_targets"),
    hub="truthfulqa/truthful_qa",
    licence="Apache-2.0",
)


def _variant(ability: str, metric: str, chance: float | None, name: str, source: Source, shots: int = 0) -> TaskInfo:
    return TaskInfo(ability, metric, chance, benchmark=name, source=source, shots=shots, in_ability=False)


UPSTREAM: Final[dict[str, TaskInfo]] = {
    "wikitext": TaskInfo(
        "nlp",
        "word_perplexity",
        None,
        benchmark="WikiText-2",
        source=Source(
            file="basic_nlp/wikitext2",
            columns=("text",),
            hub="EleutherAI/wikitext_document_level",
            licence="CC BY-SA 3.0",
        ),
    ),
    # chance: the mean of 1/choices, and of the part of choices that is true, over its questions
    "truthfulqa_mc1": TaskInfo("trust", "acc", 0.23, benchmark="TruthfulQA (MC1)", source=_TRUTHFUL),
    "truthfulqa_mc2": TaskInfo("trust", "acc", 0.47, benchmark="TruthfulQA (MC2)", source=_TRUTHFUL),
    "lambada_openai": _variant(
        "nlp",
        "acc",
        0.0,
        "LAMBADA",
        Source("basic_nlp/lambada_openai", ("text",), "EleutherAI/lambada_openai", licence="CC BY 4.0"),
    ),
    "piqa": _variant(
        "nlp",
        "acc",
        1 / 2,
        "PIQA",
        Source("basic_nlp/piqa", ("goal", "sol1", "sol2", "label"), "baber/piqa", licence="AFL-3.0"),
    ),
    "winogrande": _variant(
        "nlp",
        "acc",
        1 / 2,
        "WinoGrande",
        Source(
            "basic_nlp/winogrande",
            ("sentence", "option1", "option2", "answer"),
            "allenai/winogrande",
            licence="CC BY 2.0",
        ),
    ),
    "boolq": _variant(
        "nlp",
        "acc",
        1 / 2,
        "BoolQ",
        Source("basic_nlp/boolq", ("question", "passage", "label"), "aps/super_glue", licence="CC BY-SA 3.0"),
    ),
    "arc_easy": _variant(
        "emergent",
        "acc",
        1 / 4,
        "ARC-Easy",
        Source("emergent/arc_easy", ("question", "choices", "answerKey"), "allenai/ai2_arc", licence="CC BY-SA 4.0"),
    ),
    "arc_challenge": _variant(
        "emergent",
        "acc",
        1 / 4,
        "ARC-Challenge",
        Source(
            "emergent/arc_challenge", ("question", "choices", "answerKey"), "allenai/ai2_arc", licence="CC BY-SA 4.0"
        ),
    ),
    "hellaswag": _variant(
        "emergent",
        "acc",
        1 / 4,
        "HellaSwag",
        Source(
            "emergent/hellaswag",
            ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
            "Rowan/hellaswag",
            licence="MIT",
        ),
    ),
    "gsm8k": _variant(
        "emergent",
        "exact_match",
        0.0,
        "GSM8K",
        Source(
            "emergent/gsm8k",
            ("question", "answer"),
            "openai/gsm8k",
            shots_file="emergent/gsm8k_train",
            licence="MIT",
        ),
        shots=5,
    ),
}

FOLDERS: Final = {
    "wikitext": "wikitext",
    "truthfulqa_mc1": "truthfulqa",
    "truthfulqa_mc2": "truthfulqa",
    "lambada_openai": "lambada",
    "piqa": "piqa",
    "winogrande": "winogrande",
    "boolq": "super_glue/boolq",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "hellaswag": "hellaswag",
    "gsm8k": "gsm8k",
}
"""{task: its folder among lm_eval's tasks}: reading these few files takes no time, all of them 13 seconds."""

FILTERS: Final = {"gsm8k": "strict-match"}
"""The filter whose score counts, where there are several."""


def task_folders(tasks: Sequence[str]) -> list[Path]:
    """The folders that hold lm_eval's own files of some tasks."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return sorted({root / FOLDERS[task] for task in tasks})


def prepare(task: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of a data folder in the form that lm_eval's file expects."""
    build: Callable[[Sequence[Row], Sequence[Row]], list[dict[str, Any]]] | None = {"wikitext": nlp.wikitext}.get(task)
    return build(rows, ()) if build else [dict(row) for row in rows]
