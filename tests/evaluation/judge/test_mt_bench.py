"""The logic of MT-Bench: who sees what, at which temperature, and what ratings say together."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import ConfigError, JudgeError
from qllm_hf.evaluation.judge.mt_bench import (
    TEMPERATURES,
    WITH_REFERENCE,
    Answered,
    Question,
    Rating,
    answer_questions,
    conversations,
    questions_from_rows,
    rate,
    summarise,
)
from qllm_hf.evaluation.judge.prompts import DEFAULT_PROMPTS


def question(number=1, category="writing", references=None) -> Question:
    return Question(number, category, (f"first {number}?", f"second {number}?"), references)


class Judge:
    """Gives the scores in turn."""

    name = "listed"

    def __init__(self, *judgements: str) -> None:
        self.judgements = list(judgements)
        self.seen = []

    def ask(self, messages):
        self.seen.append(messages)
        return self.judgements[(len(self.seen) - 1) % len(self.judgements)]


@pytest.fixture(scope="session")
def rows(shared):
    """{"question": rows, "reference_answer_gpt-4": rows}: part of the questions of FastChat."""

    def read(name: str):
        path = shared / "data" / "dialogue" / f"mt_bench_{name}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return {name: read(name) for name in ("question", "reference_answer_gpt-4")}


def test_real_questions(rows):
    questions = questions_from_rows(rows["question"], rows["reference_answer_gpt-4"])
    assert len(questions) == 48 and {q.category for q in questions} == set(TEMPERATURES)
    with_reference = [q for q in questions if q.references]
    assert {q.category for q in with_reference} == set(WITH_REFERENCE) and len(with_reference) == 18
    # whole answers come before the short ones in the question
    (thomas,) = [q for q in questions if q.id == 103]
    assert thomas.references[0].startswith("There could be several reasons for Thomas")


def test_questions_from_the_hub(rows):
    """Their ids are others, and their references are those of the questions, some of them empty."""
    hub = [
        {
            "prompt": row["turns"],
            "prompt_id": 7 * row["question_id"],
            "category": row["category"],
            "reference": row.get("reference", []),
        }
        for row in rows["question"]
    ]
    questions = {q.id: q for q in questions_from_rows(hub)}
    assert questions[7 * 81].turns == tuple(rows["question"][0]["turns"])
    assert questions[7 * 123].references is None  # of coding, and without one
    assert questions[7 * 133].references is None  # of extraction, and with one
    assert questions[7 * 103].references[1] == ""


ROW = {"question_id": 1, "category": "math", "turns": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "references", "message"),
    [
        (ROW | {"turns": ["a"]}, [], r"question 1 needs a question for each of two turns, and has \['a'\]"),
        (ROW | {"turns": "ab"}, [], "has 'ab'"),
        ({"question_id": 1, "category": "math"}, [], "has none"),
        ({"turns": ["a", "b"]}, [], "this row has turns"),
        (ROW | {"reference": ["a"]}, [], "question 1 needs a reference for each of two turns"),
        (ROW, [{"question_id": 1, "choices": []}], r"needs question_id and choices\[0\]\.turns"),
        (ROW, [{"question_id": 1, "choices": [{"turns": ["a"]}]}], "needs a reference for each"),
    ],
)
def test_wrong_rows(row, references, message):
    with pytest.raises(ConfigError, match=message):
        questions_from_rows([row], references)


def test_one_id_twice():
    with pytest.raises(ConfigError, match="two questions have the id 1"):
        questions_from_rows([ROW, ROW])


def test_answers_in_order_and_second_turns_see_first_ones():
    calls, seen = [], []

    def chat(dialogues, temperature, max_new_tokens):
        calls.append((temperature, max_new_tokens, dialogues))
        return [f"<{dialogue[-1]['content']}>" for dialogue in dialogues]

    questions = [question(1), question(2, "math"), question(3, "roleplay"), question(4, "stem"), question(5, "chess")]
    answered = answer_questions(chat, questions, seen.append)
    assert [one.question for one in answered] == questions
    assert all(one.answers == (f"<{one.question.turns[0]}>", f"<{one.question.turns[1]}>") for one in answered)
    assert [(temperature, len(dialogues)) for temperature, _, dialogues in calls] == [
        *[(0.7, 3)] * 2,
        *[(0.0, 1)] * 2,
        *[(0.1, 1)] * 2,
    ]
    assert {length for _, length, _ in calls} == {1024}
    assert calls[0][2][0] == [{"role": "user", "content": "first 1?"}]
    assert calls[1][2][0] == [
        {"role": "user", "content": "first 1?"},
        {"role": "assistant", "content": "<first 1?>"},
        {"role": "user", "content": "second 1?"},
    ]
    assert sorted(seen, key=lambda one: one.question.id) == answered


def test_no_questions():
    assert answer_questions(lambda *_: [], []) == []


def test_an_error_of_the_model_is_none_of_its_answers():
    def chat(*_):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        answer_questions(chat, [question()])


def test_a_chat_that_loses_an_answer():
    with pytest.raises(ConfigError, match="gave 1 answers to 2 conversations"):
        answer_questions(lambda *_: ["a"], [question(1), question(2)])


@pytest.mark.parametrize(
    ("references", "shown"),
    [(None, ([], [])), (("r one", "r two"), ([1], [1, 2])), (("r one", ""), ([1], [])), (("", "r two"), ([], []))],
)
def test_references_are_shown_where_all_are_there(references, shown):
    asked = conversations([Answered(question(references=references), ("a", "b"))], DEFAULT_PROMPTS)
    words = {1: "r one", 2: "r two"}
    for messages, expected in zip(asked, shown, strict=True):
        text = messages[-1]["content"]
        assert [turn for turn in (1, 2) if words[turn] in text] == expected
        assert ("solution" in messages[0]["content"]) == bool(expected)


def test_two_ratings_each_and_empty_answers_too():
    judge, seen = Judge("[[3]]", "nothing", "[[5]]", "[[6]]"), []
    answered = [Answered(question(8), ("", "")), Answered(question(9, "stem"), ("{answer}", "{question_1}"))]
    ratings = rate(judge, answered, DEFAULT_PROMPTS, seen.append)
    assert (
        ratings
        == seen
        == [
            Rating(8, "writing", 1, 3.0, "[[3]]", "listed"),
            Rating(8, "writing", 2, -1.0, "nothing", "listed"),
            Rating(9, "stem", 1, 5.0, "[[5]]", "listed"),
            Rating(9, "stem", 2, 6.0, "[[6]]", "listed"),
        ]
    )
    assert judge.seen == conversations(answered, DEFAULT_PROMPTS)
    assert "{answer}" in judge.seen[2][-1]["content"] and "{question_1}" in judge.seen[3][-1]["content"]


def rating(number, turn, score, category="writing") -> Rating:
    return Rating(number, category, turn, score, f"[[{score}]]", "listed")


def test_summary():
    ratings = [
        *(rating(1, 1, 8.0), rating(1, 2, 6.0)),
        *(rating(2, 1, 4.0), rating(2, 2, -1.0)),
        *(rating(3, 1, 10.0, "math"), rating(3, 2, 9.0, "math")),
        *(rating(4, 1, -1.0, "stem"), rating(4, 2, -1.0, "stem")),
    ]
    assert summarise(ratings) == {
        "score": pytest.approx(37 / 5),
        "stderr": pytest.approx(statistics.stdev([7.0, 4.0, 9.5]) / math.sqrt(3)),
        "turn_1": pytest.approx(22 / 3),
        "turn_2": 7.5,
        "categories": {"writing": 6.0, "math": 9.5, "stem": None},
        "parsed": 5,
        "dropped": 3,
    }


def test_one_question_has_no_standard_error():
    summary = summarise([rating(1, 1, 8.0), rating(1, 2, -1.0)])
    assert (summary["score"], summary["stderr"], summary["turn_2"]) == (8.0, None, None)


@given(st.lists(st.tuples(st.sampled_from([1.0, 5.5, 10.0, -1.0]), st.floats(1, 10)), min_size=1))
def test_summary_of_any_ratings(pairs):
    ratings = [rating(n, turn, score) for n, pair in enumerate(pairs) for turn, score in enumerate(pair, start=1)]
    summary = summarise(ratings)
    assert summary["parsed"] + summary["dropped"] == len(ratings)
    assert 1 <= summary["score"] <= 10 + 1e-9 and 1 <= summary["turn_2"] <= 10 + 1e-9
    assert summary["stderr"] is None or 0 <= summary["stderr"] <= 9


def test_a_judge_that_does_not_rate():
    ratings = rate(Judge("Once upon a time. " * 50), [Answered(question(), ("a", "b"))], DEFAULT_PROMPTS)
    with pytest.raises(JudgeError, match=r"the judge 'listed' gave no rating in 2 answers\. The first one: 'Once") as e:
        summarise(ratings)
    assert ("Once upon a time. " * 50)[:200] in str(e.value) and len(str(e.value)) < 400


def test_nothing_was_judged():
    with pytest.raises(JudgeError, match="nothing was judged"):
        summarise([])
