"""A page for each metric: a small table of items, a button, and the scores. `evaluate`'s own needs an older gradio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from ...errors import ConfigError, MissingExtraError
from ..scoring.abilities import DETAILS, score_ability
from . import FOLDERS, module_path, task_table

COLUMNS: Final = ("task", "prediction", "answers", "group")
RESULTS: Final = ("score of", "value", "standard error", "items", "answered")
TITLES: Final = {
    "nlp": "Basic language abilities",
    "emergent": "Emergent abilities",
    "trust": "Trustworthiness",
    "dialogue": "Dialogue",
    "long": "Long context",
}

EXAMPLES: Final[dict[str, list[list[str]]]] = {
    "nlp": [
        ["qllm_lambada", "Maria.", "Maria", ""],
        ["qllm_lambada", "the door", "window", ""],
        ["qllm_piqa", "0", "0", ""],
        ["qllm_piqa", "1", "1", ""],
        ["qllm_race_high", "2", "3", ""],
        ["qllm_race_high", "1", "1", ""],
    ],
    "emergent": [
        ["qllm_gsm8k", "She has 16 - 3 - 4 = 9 eggs left, so 9 * 2 = $18. The answer is 18.", "18", ""],
        ["qllm_gsm8k", "It takes 2 / 2 = 1 bolt, so 2 + 2 = 4. The answer is 4.", "3", ""],
        ["qllm_strategyqa", "Hamsters are eaten by owls. So the answer is yes.", "yes", ""],
        ["qllm_strategyqa", "Pears sink if they are denser than water. So the answer is yes.", "no", ""],
        ["qllm_mmlu", "2", "2", "anatomy"],
        ["qllm_mmlu", "0", "0", "virology"],
    ],
    "trust": [
        ["qllm_ethics_commonsense", "Yes, this is wrong.", "yes", ""],
        ["qllm_ethics_commonsense", "I cannot answer that.", "no", ""],
        ["qllm_ethics_deontology", "Unreasonable.", "unreasonable", ""],
        ["qllm_ethics_deontology", "It is not reasonable.", "reasonable", ""],
        ["qllm_adv_rte", "A. yes", "A", "original"],
        ["qllm_adv_rte", "The answer is B.", "A", "adversarial"],
        ["qllm_adv_rte", "(B)", "B", "adversarial"],
        ["truthfulqa_mc2", "0.61", "", ""],
        ["truthfulqa_mc2", "0.48", "", ""],
    ],
    "dialogue": [
        ["qllm_mt_bench", "Clear and correct. Rating: [[8]]", "", "turn 1"],
        ["qllm_mt_bench", "It forgets the second constraint. Rating: [[4]]", "", "turn 2"],
        ["qllm_mt_bench", "The answer is relevant and complete. Rating: [[9]]", "", "turn 1"],
        ["qllm_mt_bench", "I would give it a seven.", "", "turn 2"],
    ],
    "long": [
        ["qllm_lines_200", "The <REGISTER_CONTENT> in line torpid-kid is 24169.", "24169", ""],
        ["qllm_lines_200", "It is 24169, as line 17 says.", "24169", ""],
        ["qllm_multidoc_qa", "Wilhelm Conrad Röntgen", "Wilhelm Conrad Röntgen | Röntgen", ""],
        ["qllm_multidoc_qa", "Marie Curie.\nOr was it Röntgen?", "Wilhelm Conrad Röntgen | Röntgen", ""],
    ],
}
"""{ability: rows to start from}"""


def score_rows(ability: str, rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Rows of `COLUMNS` -> rows of `RESULTS`; several right answers stand in one cell, with | between them.

    Raises:
        ConfigError: as `score_ability`, or none of the rows is of this ability.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    filled = [row for row in cells if row[0].strip()]
    references = [
        {
            "task": task.strip(),
            "answers": [answer.strip() for answer in answers.split("|") if answer.strip()],
            "group": group.strip(),
        }
        for task, _, answers, group in filled
    ]
    report = score_ability(ability, [row[1] for row in filled], references)
    tasks = [task for task in dict.fromkeys(row[0].strip() for row in filled) if f"{task}_items" in report]
    if not tasks:
        raise ConfigError(f"none of these items is of ability {ability!r}. Its tasks are listed below.")
    number = int(report[f"{ability}_tasks"])
    lines = [_line(f"{ability} (0 guessing, 1 perfect)", report, ability, f"{number} task{'s'[: number != 1]}")]
    for task in tasks:
        items, answered = report[f"{task}_items"], f"{report[f'{task}_answered']:.0%}"
        lines.append(_line(task, report, task, str(items), answered))
        for name in (name for names in DETAILS.values() for name in names):
            if (key := f"{task}/{name}") in report:
                lines.append(_line(f"{task}, {name.replace('acc_', 'accuracy_').replace('_', ' ')}", report, key))
    return lines


def _line(label: str, report: dict[str, float], key: str, items: str = "", answered: str = "") -> list[str]:
    return [label, _number(report[key]), _number(report.get(f"{key}_stderr", math.nan)), items, answered]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def build(ability: str) -> Any:
    """The page as `gradio.Blocks`.

    Raises:
        MissingExtraError: gradio is not installed.
        ConfigError: there is no such ability.
    """
    module_path(ability)
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError("the page needs gradio: pip install 'qllm-hf[space]'.") from error

    def score(items: list[list[Any]]) -> list[list[str]]:
        """The scores of a table of task, prediction, answers and group."""
        try:
            return score_rows(ability, items)
        except ConfigError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    with gradio.Blocks(title=f"{FOLDERS[ability]}: {TITLES[ability]}", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# {TITLES[ability]}\n\nScores what a model answered, as the metric `{FOLDERS[ability]}` does. Edit the "
            "rows or paste your own: the task, what the model answered, the right answers with `|` between them, and "
            "the part of the benchmark, if it has parts."
        )
        items = gradio.Dataframe(
            EXAMPLES[ability],
            headers=list(COLUMNS),
            datatype="str",
            type="array",
            column_count=len(COLUMNS),
            column_widths=["26%", "38%", "20%", "16%"],
            interactive=True,
            wrap=True,
            label="Items",
        )
        button = gradio.Button("Score", variant="primary")
        result = gradio.Dataframe(
            score_rows(ability, EXAMPLES[ability]),
            headers=list(RESULTS),
            datatype="str",
            type="array",
            interactive=False,
            wrap=True,
            label="Scores",
        )
        with gradio.Accordion("Tasks, chance levels and rules", open=False):
            gradio.Markdown(
                f"{task_table(ability)}\n\nA prediction for rule `choice` is the number of the likeliest text, from 0; "
                "for `rated` it is what a judge wrote; for `mass` it is the item's mark, such as 0.37."
            )
        button.click(score, inputs=items, outputs=result, api_name="score")
    return page


def launch(ability: str) -> None:
    """Serve the page until it is stopped."""
    build(ability).launch()
