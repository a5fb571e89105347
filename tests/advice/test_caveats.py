"""Where advice and data disagree is said where it matters, and nowhere else, with numbers from the data."""

import pytest

from qllm_hf.advice import caveats
from qllm_hf.advice.caveats import CAVEATS, disagreements
from qllm_hf.advice.situation import Situation
from qllm_hf.published.query import published

KNOWN = {caveat.id for caveat in CAVEATS}


def said(**values: object) -> set[str]:
    found = disagreements(Situation(**{"params_b": 7, **values}))
    return {each.id for each in found} & KNOWN


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ({"abilities": ("dialogue",)}, {"a"}),
        ({"abilities": ("dialogue",), "has_kv": False}, set()),
        ({"abilities": ("nlp",)}, set()),
        ({"abilities": ("icl", "if", "sc")}, set()),
        ({"abilities": ("mr",)}, set()),
        ({"abilities": ("mr",), "params_b": 13}, set()),
        ({"abilities": ("mr",), "params_b": 70}, {"b"}),
        ({"abilities": ("mr",), "params_b": 46.7, "moe": True}, set()),
        ({"abilities": ("icl", "mr")}, {"c"}),
        ({"abilities": ("emergent",)}, {"c"}),
        ({"abilities": ("emergent",), "params_b": 70}, {"b", "c"}),
        ({"abilities": ("long",), "context": 4096}, set()),
        ({"abilities": ("long",), "context": 6144}, set()),
        ({"abilities": ("long",), "context": 8192}, {"d"}),
        ({"abilities": ("long",), "context": 16384}, {"d"}),
        ({"abilities": ("long",), "context": 16384, "has_kv": False}, set()),
        ({"abilities": ("nlp",), "context": 16384}, {"d"}),
        ({"abilities": ("trust",)}, set()),
        ({"abilities": ("trust",), "family": "LLaMA2"}, {"e"}),
        ({"abilities": ("trust",), "params_b": 70}, {"e"}),
        ({"abilities": ("trust",), "params_b": 70, "has_kv": False}, set()),
        ({"abilities": ("all",), "params_b": 70, "context": 16384}, {"a", "b", "c", "d", "e"}),
    ],
)
def test_a_caveat_is_said_exactly_where_it_matters(situation, expected):
    assert said(**situation) == expected


@pytest.mark.parametrize(
    ("caveat", "numbers"),
    [
        ("a", ("5 of 12 models", "mean loss is 3.5 %")),
        ("b", ("5 models", "2.2 points", "4.6 %")),
        ("c", ("0.94", "0.83", "0.78")),
        ("d", ("LongChat-13B 52 %", "LongChat-7B 54 %", "5 models at most 7 %")),
        ("e", ("from 61 to 25",)),
    ],
)
def test_numbers_are_those_of_the_data(caveat, numbers):
    text = next(each.text() for each in CAVEATS if each.id == caveat)
    for number in numbers:
        assert number in text


def test_numbers_are_computed(monkeypatch):
    """Other data, other sentences."""

    def only_some(**question: object):
        return published(**question).where(lambda row: row.family != "LLaMA2")

    before = {each.id: each.text() for each in CAVEATS[:2]}
    monkeypatch.setattr(caveats, "published", only_some)
    after = {each.id: each.text() for each in CAVEATS[:2]}
    assert "of 9 models" in after["a"]
    assert before["b"] != after["b"]


def rules_said(*abilities: str, **values: object) -> dict[str, str]:
    found = disagreements(Situation(abilities, **{"params_b": 7, **values}))
    return {each.id: each.text for each in found if each.id.startswith("R")}


def test_a_rule_that_costs_models_like_this_more_than_the_tolerance_is_named():
    found = rules_said("nlp", params_b=1)
    assert found.keys() == {"R1"}
    assert "W4 (4.2 %, lambada, below 6B)" in found["R1"]
    assert "above 2 %" in found["R1"]
    assert rules_said("nlp", params_b=70) == {}
    assert rules_said("nlp", params_b=1, tolerance=5) == {}


def test_what_a_known_caveat_says_is_not_said_twice():
    found = disagreements(Situation(("dialogue",), 7))
    assert [each.id for each in found] == ["a", "R5"]
    assert "KV4" not in found[1].text


def test_a_model_without_keys_and_values_hears_nothing_of_kv():
    texts = " ".join(each.text for each in disagreements(Situation(("all",), 2.8, has_kv=False, context=16384)))
    assert "KV" not in texts


def test_contexts_beyond_the_data_are_said():
    assert {each.id for each in disagreements(Situation(("long",), 7, context=32768))} >= {"length"}
    assert "length" not in {each.id for each in disagreements(Situation(("long",), 7, context=16384))}
