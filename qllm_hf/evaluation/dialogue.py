"""MT-Bench in the engine: two turns answered by the model, rated by a judge, and looked at for repetition and garbage.

lm_eval asks each question once, so the two turns are asked here. The rules of the benchmark are in
`qllm_hf.evaluation.judge.mt_bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .judge.cached import CachedJudge
from .judge.cost import Price, estimate
from .judge.judge import Judge
from .judge.mt_bench import Answered, Rating, answer_questions, conversations, questions_from_rows, rate, summarise
from .judge.prompts import DEFAULT_PROMPTS, JudgePrompts
from .registry import find_task
from .sources import Rows, read_rows, read_shots
from .statistics import mean
from .texts.repetition import condition_rates, look_at

if TYPE_CHECKING:
    from .lm import QllmLM

RATED: Final = "qllm_mt_bench"
LOOKED_AT: Final = "qllm_mt_bench_text"
VERSION: Final = "1.0"


@dataclass(frozen=True)
class Rater:
    """A judge with its instructions, what it costs, and whom to tell.

    Attributes:
        judge: rates; a `CachedJudge` is asked nothing twice.
        prompts: its instructions.
        price: of a hosted judge.
        tell: is called with the estimate before the first question.
    """

    judge: Judge
    prompts: JudgePrompts = DEFAULT_PROMPTS
    price: Price | None = None
    tell: Callable[[str], None] = lambda text: None

    @property
    def name(self) -> str:
        """Who judges, by which instructions."""
        return f"{self.judge.name}, prompts {self.prompts.digest}"


Scored = tuple[dict[str, Any], list[dict[str, Any]]]


def prepare(
    task: str, lm: QllmLM, data_dir: str | Path | None, limit: int | None, chat: bool, rater: Rater | None
) -> tuple[dict[str, Any], Callable[[], Scored]]:
    """(what tells the record of a task from others, the function that asks and scores).

    Raises:
        ConfigError: the questions cannot be had.
    """
    questions, rows = _questions(data_dir)
    identity = {
        "task_version": VERSION,
        "shots": 0,
        "chat": chat,
        "data": {"origin": rows.origin, "digest": rows.digest},
        "judge": rater.name if rater is not None and task == RATED else "",
    }

    def ask() -> Scored:
        answered = answer_questions(lambda *arguments: lm.chat(*arguments, chat=chat), questions[:limit])
        if task == LOOKED_AT or rater is None:
            return _looked_at(answered)
        shared = lm.ranks.share(
            {0: [asdict(rating) for rating in _rated(answered, rater)]} if lm.ranks.is_first else {}
        )
        return _summary(answered, [Rating(**rating) for rating in shared[0]])

    return identity, ask


def _questions(data_dir: str | Path | None) -> tuple[list[Any], Rows]:
    source = find_task(RATED).source
    folder = None if data_dir is None else Path(data_dir).expanduser()
    rows = read_rows(RATED, source, folder)
    references = [] if folder is None else read_shots(RATED, source, folder).rows
    return questions_from_rows(rows.rows, references), rows


def _rated(answered: list[Answered], rater: Rater) -> list[Rating]:
    cache = rater.judge if isinstance(rater.judge, CachedJudge) else None
    rater.tell(str(estimate(conversations(answered, rater.prompts), cache=cache, price=rater.price)))
    return rate(rater.judge, answered, rater.prompts)


def _summary(answered: list[Answered], ratings: list[Rating]) -> Scored:
    found = summarise(ratings)
    details = {
        "turn 1": found["turn_1"],
        "turn 2": found["turn_2"],
        **found["categories"],
        "without rating": float(found["dropped"]),
    }
    scores = {
        "value": found["score"],
        "stderr": float("nan") if found["stderr"] is None else found["stderr"],
        "items": found["parsed"],
        "answered": found["parsed"] / len(ratings),
        "details": {name: value for name, value in details.items() if value is not None},
    }
    lines = []
    for one, first, second in zip(answered, ratings[::2], ratings[1::2], strict=True):
        for turn, rating in enumerate((first, second)):
            lines.append({**_line(one, turn), "rating": rating.score, "judgement": rating.judgement})
    return scores, lines


def _looked_at(answered: list[Answered]) -> Scored:
    """The part of the answers that are fine: neither empty, nor repeating themselves, nor garbage."""
    lines = [_line(one, turn) for one in answered for turn in range(2)]
    of_question = mean([sum(look_at(text).verdict == "fine" for text in one.answers) / 2 for one in answered])
    rates = condition_rates([line["prediction"] for line in lines])
    return {
        "value": of_question.value,
        "stderr": of_question.stderr,
        "items": len(lines),
        "details": {f"text: {name}": part for name, part in rates.items()},
    }, lines


def _line(one: Answered, turn: int) -> dict[str, Any]:
    return {
        "id": one.question.id,
        "category": one.question.category,
        "turn": turn + 1,
        "prompt": one.question.turns[turn],
        "prediction": one.answers[turn],
        "condition": look_at(one.answers[turn]).verdict,
    }
