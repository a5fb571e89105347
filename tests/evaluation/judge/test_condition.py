"""A judge's verdict on the condition of texts."""

import pytest

from qllm_hf.evaluation.judge.condition import (
    CONDITIONS,
    UNCLEAR,
    condition_messages,
    judge_conditions,
    parse_condition,
)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_is_explained_and_read(name):
    system, user = condition_messages("some {text} with [[fine]] in it")
    assert f"- {name}: " in system["content"] and "some {text} with [[fine]] in it" in user["content"]
    assert parse_condition(f"I think so. [[{name.title()}]] Yes.") == name


@pytest.mark.parametrize("text", ["", "fine", "[fine]", "[[7]]", "[[superb]]", "[[]]"])
def test_anything_else_is_no_verdict(text):
    assert parse_condition(text) == UNCLEAR


def test_unknown_names_are_passed_over():
    assert parse_condition("[[superb]] or rather [[refusal]]") == "refusal"


def test_texts_are_asked_one_by_one():
    class Judge:
        name = "length"

        def ask(self, messages):
            return "[[fine]]" if len(messages[-1]["content"]) < 80 else "[[token repetition]]"

    assert judge_conditions(Judge(), ["short", "again " * 40]) == ["fine", "token repetition"]
