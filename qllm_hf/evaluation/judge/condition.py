"""What a judge says of a text's condition: it sees random words and refusals that no pattern can.

`qllm_hf.evaluation.texts` finds repetition and garbage without a judge, and both are reported side by side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from .judge import Judge, Messages

CONDITIONS: Final = ("fine", "empty", "garbage", "sentence repetition", "token repetition", "refusal")
UNCLEAR: Final = "no verdict"

_MEANINGS: Final = {
    "fine": "it is language that means something, right or wrong",
    "empty": "there is nothing but white space",
    "garbage": "signs or words without meaning, such as words in random order",
    "sentence repetition": "the same sentence, or nearly the same one, again and again",
    "token repetition": "the same word or short phrase again and again",
    "refusal": "it declines to answer",
}
_SYSTEM: Final = (
    "You look at texts that a language model wrote. Do not judge whether they are true or helpful, only which of these "
    "conditions each is in:\n"
    + "\n".join(f"- {name}: {meaning}" for name, meaning in _MEANINGS.items())
    + "\nAnswer with one of these names in double square brackets, such as [[fine]]."
)
_VERDICT: Final = re.compile(r"\[\[\s*([a-z ]+?)\s*\]\]", re.IGNORECASE)


def condition_messages(text: str) -> Messages:
    """What a judge is asked about a text."""
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": f"<text>\n{text}\n</text>\n\nWhich condition is it in?"},
    ]


def parse_condition(judgement: str) -> str:
    """The first of `CONDITIONS` that stands in double brackets, else "no verdict".

    >>> parse_condition("The words are in no order: [[Garbage]]"), parse_condition("It is bad.")
    ('garbage', 'no verdict')
    """
    named = (found[1].lower() for found in _VERDICT.finditer(judgement))
    return next((name for name in named if name in CONDITIONS), UNCLEAR)


def judge_conditions(
    judge: Judge, texts: Iterable[str], progress: Callable[[str], object] = lambda condition: None
) -> list[str]:
    """The condition of each text, as a judge sees it; `progress` is called with each.

    Raises:
        JudgeError: the judge does not answer.
    """
    found = []
    for text in texts:
        found.append(parse_condition(judge.ask(condition_messages(text))))
        progress(found[-1])
    return found
