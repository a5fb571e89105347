"""MT-Bench in the engine: two turns answered by the model, rated by a judge, and looked at for repetition and garbage.

lm_eval asks each question once, so the two turns are asked here. The rules of the benchmark are in
`qllm_hf.evaluation.judge.mt_bench`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm.auto import tqdm

from .judge.cached import CachedJudge
from .judge.condition import CONDITIONS, UNCLEAR, condition_messages, judge_conditions
from .judge.cost import Price, estimate
from .judge.judge import Judge, Messages
from .judge.mt_bench import (
    Answered,
    Question,
    Rating,
    answer_questions,
    conversations,
    questions_from_rows,
    rate,
    summarise,
)
from .judge.prompts import DEFAULT_PROMPTS, JudgePrompts
from .registry import find_task
from .samples import Prepared, Scored
from .sources import Rows, digest_of, read_rows, read_shots
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


def prepare(task: str, lm: QllmLM, data_dir: str | Path | None, chat: bool, rater: Rater | None) -> Prepared:
    """One of the two tasks, ready to be asked.

    Raises:
        ConfigError: the questions cannot be had.
    """
    questions, rows = read_questions(data_dir)
    identity = {
        "task_version": VERSION,
        "shots": 0,
        "chat": chat,
        "data": {"origin": rows.origin, "digest": digest_of([asdict(question) for question in questions])},
        "judge": "" if rater is None else rater.name,
    }

    def ask(limit: int | None) -> Scored:
        answered = answer_questions(lambda *arguments: lm.chat(*arguments, chat=chat), questions[:limit])
        if task == RATED and rater is not None:
            return _summary(
                answered, [Rating(**rating) for rating in _by_first(lm, lambda: _rated(lm, answered, rater))]
            )
        texts = [text for one in answered for text in one.answers]
        verdicts = [] if rater is None else _by_first(lm, lambda: _judged(lm, texts, rater))
        return _looked_at(answered, verdicts)

    return Prepared(identity, len(questions), ask)


def _by_first(lm: QllmLM, ask: Callable[[], list[Any]]) -> list[Any]:
    """What the first process finds, in all of them: a judge is asked once."""
    found: list[Any] = lm.ranks.of_first(ask)
    return found


def read_questions(data_dir: str | Path | None) -> tuple[list[Question], Rows]:
    """The questions of MT-Bench with reference answers, and the rows they were made from.

    Raises:
        ConfigError: they cannot be had.
    """
    source = find_task(RATED).source
    folder = None if data_dir is None else Path(data_dir).expanduser()
    rows = read_rows(RATED, source, folder)
    references = [] if folder is None else read_shots(RATED, source, folder).rows
    return questions_from_rows(rows.rows, references), rows


def _rated(lm: QllmLM, answered: list[Answered], rater: Rater) -> list[dict[str, Any]]:
    _tell_cost(rater, conversations(answered, rater.prompts))
    with _bar(lm, "ratings", 2 * len(answered)) as bar:
        return [asdict(rating) for rating in rate(rater.judge, answered, rater.prompts, lambda rating: bar.update(1))]


def _judged(lm: QllmLM, texts: list[str], rater: Rater) -> list[str]:
    _tell_cost(rater, [condition_messages(text) for text in texts])
    with _bar(lm, "conditions", len(texts)) as bar:
        return judge_conditions(rater.judge, texts, lambda condition: bar.update(1))


def _bar(lm: QllmLM, what: str, total: int) -> Any:
    return tqdm(total=total, desc=f"{lm.label} {what}", unit="call", disable=not lm.bars, leave=False)


def _tell_cost(rater: Rater, asked: list[Messages]) -> None:
    cache = rater.judge if isinstance(rater.judge, CachedJudge) else None
    rater.tell(str(estimate(asked, cache=cache, price=rater.price)))


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


def _looked_at(answered: list[Answered], verdicts: list[str]) -> Scored:
    """The part of the answers that are fine: neither empty, nor repeating themselves, nor garbage.

    The score is what can be found without a judge; what a judge says goes into the details and the samples.
    """
    lines = [_line(one, turn) for one in answered for turn in range(2)]
    of_question = mean([sum(look_at(text).verdict == "fine" for text in one.answers) / 2 for one in answered])
    details = {f"text: {name}": part for name, part in condition_rates(line["prediction"] for line in lines).items()}
    for line, verdict in zip(lines, verdicts, strict=bool(verdicts)):
        line["judged"] = verdict
    for name in (*CONDITIONS, UNCLEAR) if verdicts else ():
        details[f"judge: {name}"] = verdicts.count(name) / len(verdicts)
    return {
        "value": of_question.value,
        "stderr": of_question.stderr,
        "items": len(lines),
        "details": details,
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
