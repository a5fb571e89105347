"""MT-Bench: questions of two turns, answered by one model and rated by another (section 2.4 of the study).

Nothing here loads a model: who answers and who judges is given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from ...errors import ConfigError, JudgeError
from .judge import Judge, Messages
from .prompts import JudgePrompts
from .rating import UNPARSED, parse_rating

TEMPERATURES: Final[dict[str, float]] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""{category: how answers are sampled}, 0 being greedy. Any other category: `DEFAULT_TEMPERATURE`."""

DEFAULT_TEMPERATURE: Final = 0.7
MAX_NEW_TOKENS: Final = 1024
"""Of one answer."""

WITH_REFERENCE: Final = ("math", "reasoning", "coding")
"""The categories whose answers are compared with a reference. Some lists have references for others: not used."""

Chat = Callable[[list[Messages], float, int], list[str]]
"""chat(conversations, temperature, max_new_tokens) -> the next answer in each conversation."""


@dataclass(frozen=True)
class Question:
    """One question of two turns.

    Attributes:
        id: as in the list of questions.
        category: such as "writing".
        turns: what is asked first, and then, with the first answer in view.
        references: a correct answer to each turn, where answers are judged by one; an empty one means none.
    """

    id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None = None

    @property
    def temperature(self) -> float:
        """At which answers to it are sampled."""
        return TEMPERATURES.get(self.category, DEFAULT_TEMPERATURE)


@dataclass(frozen=True)
class Answered:
    """A question with the answers of a model to both turns."""

    question: Question
    answers: tuple[str, str]


@dataclass(frozen=True)
class Rating:
    """What a judge thinks of one answer.

    Attributes:
        question_id: of the question.
        category: of the question.
        turn: 1 or 2.
        score: from 1 to 10, or -1 if the judgement holds no rating.
        judgement: all that the judge wrote.
        judge: its name.
    """

    question_id: int
    category: str
    turn: int
    score: float
    judgement: str
    judge: str


class Summary(TypedDict):
    """Ratings in a few numbers. Means are from 1 to 10, or None if no judgement of theirs held a rating."""

    score: float
    """The mean of all ratings."""
    stderr: float | None
    """Of the score, over questions: the two turns of one depend on each other. None with fewer than two questions."""
    turn_1: float | None
    turn_2: float | None
    categories: dict[str, float | None]
    parsed: int
    """How many judgements held a rating."""
    dropped: int
    """How many did not, and are in no mean."""


def questions_from_rows(
    question_rows: Iterable[dict[str, Any]], reference_rows: Iterable[dict[str, Any]] = ()
) -> list[Question]:
    """The questions of FastChat's files, or of a data set on the Hub made from them.

    Args:
        question_rows: with `question_id`, `category` and `turns`, or `prompt_id`, `category` and `prompt`; and perhaps
            with `reference`, short answers to both turns.
        reference_rows: with `question_id` and `choices`: whole answers, which come before those in a question.

    Raises:
        ConfigError: a row has not what is needed, or two questions have one id.
    """
    given = dict(map(_reference, reference_rows))
    questions: dict[int, Question] = {}
    for row in question_rows:
        number = row.get("question_id", row.get("prompt_id"))
        if number is None or "category" not in row:
            raise ConfigError(f"a question needs question_id, category and turns; this row has {', '.join(row)}.")
        if number in questions:
            raise ConfigError(f"two questions have the id {number}. Give each its own.")
        turns = _two(row.get("turns") or row.get("prompt"), "question", row)
        references = None
        if row["category"] in WITH_REFERENCE:
            references = given.get(number)
            if references is None and row.get("reference"):
                references = _two(row["reference"], "reference", row)
        questions[number] = Question(number, row["category"], turns, references)
    return list(questions.values())


def answer_questions(
    chat: Chat, questions: Sequence[Question], progress: Callable[[Answered], None] = lambda answered: None
) -> list[Answered]:
    """The answers to all questions, in their order. In the second turn a model sees the first and its answer to it.

    Questions of one temperature go together, first turns before second ones. An error of the model ends it: the study
    writes "ERROR" as the answer and lets it be judged, which makes a crash look like a bad model.

    Args:
        chat: the model.
        questions: any number.
        progress: is called with each question when both of its answers are there.
    """
    found: dict[int, Answered] = {}
    for temperature in dict.fromkeys(question.temperature for question in questions):
        group = [(place, q) for place, q in enumerate(questions) if q.temperature == temperature]
        dialogues = [[{"role": "user", "content": question.turns[0]}] for _, question in group]
        first = _checked(chat, dialogues, temperature)
        for dialogue, answer, (_, question) in zip(dialogues, first, group, strict=True):
            dialogue.append({"role": "assistant", "content": answer})
            dialogue.append({"role": "user", "content": question.turns[1]})
        second = _checked(chat, dialogues, temperature)
        for (place, question), *answers in zip(group, first, second, strict=True):
            found[place] = Answered(question, (answers[0], answers[1]))
            progress(found[place])
    return [found[place] for place in range(len(questions))]


def conversations(answered: Iterable[Answered], prompts: JudgePrompts) -> list[Messages]:
    """What a judge will be asked, two for each question: the first turn alone, then the second with the first.

    A turn with a reference is judged by it. Empty answers are judged too: a model that says nothing is to be rated
    like one, not left out.
    """
    return [messages for one in answered for messages in _asked(one, prompts)]


def rate(
    judge: Judge,
    answered: Iterable[Answered],
    prompts: JudgePrompts,
    progress: Callable[[Rating], object] = lambda rating: None,
) -> list[Rating]:
    """Two ratings for each question, in order. One answer at a time is graded, not compared with another.

    Raises:
        JudgeError: the judge does not answer.
    """
    ratings = []
    for one in answered:
        for turn, messages in enumerate(_asked(one, prompts), start=1):
            judgement = judge.ask(messages)
            rating = Rating(
                question_id=one.question.id,
                category=one.question.category,
                turn=turn,
                score=parse_rating(judgement),
                judgement=judgement,
                judge=judge.name,
            )
            progress(rating)
            ratings.append(rating)
    return ratings


def summarise(ratings: Sequence[Rating]) -> Summary:
    """Means per turn, per category and of all, with a standard error. Judgements without a rating are left out.

    Raises:
        JudgeError: there is no rating at all, so the judge did not understand what it is to do.
    """
    if not ratings:
        raise JudgeError("nothing was judged: there are no answers. Give at least one question.")
    parsed = [rating for rating in ratings if rating.score != UNPARSED]
    if not parsed:
        raise JudgeError(
            f"the judge {ratings[0].judge!r} gave no rating in {len(ratings)} answers. The first one: "
            f"{ratings[0].judgement[:200]!r}. Take a judge that follows instructions, and writes a rating as [[7]]."
        )
    by_question: dict[int, list[float]] = {}
    for rating in parsed:
        by_question.setdefault(rating.question_id, []).append(rating.score)
    means = [statistics.fmean(scores) for scores in by_question.values()]
    return Summary(
        score=statistics.fmean(rating.score for rating in parsed),
        stderr=statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
        turn_1=_mean(rating.score for rating in parsed if rating.turn == 1),
        turn_2=_mean(rating.score for rating in parsed if rating.turn == 2),
        categories={
            category: _mean(rating.score for rating in parsed if rating.category == category)
            for category in dict.fromkeys(rating.category for rating in ratings)
        },
        parsed=len(parsed),
        dropped=len(ratings) - len(parsed),
    )


def _asked(answered: Answered, prompts: JudgePrompts) -> list[Messages]:
    question, answers = answered.question, answered.answers
    references = question.references or ("", "")
    known = {"ref_answer_1": references[0], "ref_answer_2": references[1]}
    first = {"question": question.turns[0], "answer": answers[0], **known}
    second = {
        "question_1": question.turns[0],
        "answer_1": answers[0],
        "question_2": question.turns[1],
        "answer_2": answers[1],
        **known,
    }
    return [
        prompts.messages("single-math-v1" if references[0] else "single-v1", first),
        prompts.messages("single-math-v1-multi-turn" if all(references) else "single-v1-multi-turn", second),
    ]


def _checked(chat: Chat, conversations: list[Messages], temperature: float) -> list[str]:
    answers = chat([list(conversation) for conversation in conversations], temperature, MAX_NEW_TOKENS)
    if len(answers) != len(conversations):
        raise ConfigError(
            f"chat gave {len(answers)} answers to {len(conversations)} conversations. It has to give one each."
        )
    return answers


def _reference(row: dict[str, Any]) -> tuple[int, tuple[str, str]]:
    try:
        number, turns = row["question_id"], row["choices"][0]["turns"]
    except (LookupError, TypeError):
        raise ConfigError(
            f"a reference answer needs question_id and choices[0].turns; this row has {', '.join(row)}."
        ) from None
    return number, _two(turns, "reference", row)


def _two(texts: Any, what: str, row: dict[str, Any]) -> tuple[str, str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) != 2:
        number = row.get("question_id", row.get("prompt_id"))
        shown = "none" if texts is None else f"{texts!r:.80}"
        raise ConfigError(f"question {number} needs a {what} for each of two turns, and has {shown}.")
    return str(texts[0]), str(texts[1])


def _mean(scores: Iterable[float]) -> float | None:
    found = list(scores)
    return statistics.fmean(found) if found else None
