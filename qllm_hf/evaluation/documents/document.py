"""One question in the form that all tasks share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..task import Document


def choice(prompt: str, choices: Sequence[str], right: int, *, group: str = "") -> Document:
    """A question whose answer is the likeliest of some texts; with an empty prompt, whole texts are compared."""
    return {
        "prompt": prompt,
        "choices": list(choices),
        "label": right,
        "answers": [str(right)],
        "group": group,
    }


def written(prompt: str, answers: Iterable[str], *, group: str = "", **remarks: str) -> Document:
    """A question whose answer is written. `remarks` go into the samples, for the analysis of mistakes."""
    answers = list(answers)
    return {
        "prompt": prompt,
        "choices": [],
        "label": -1,
        "answers": answers,
        "group": group,
        "target": answers[0] if answers else "",
        **remarks,
    }
