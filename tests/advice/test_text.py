"""The page is short, narrow, and says what the values say; the dict is JSON and says all of it."""

import json

import pytest
from advice.fakes import fake_costs

from qllm_hf.advice.advice import advise
from qllm_hf.advice.situation import Situation

GB = 10**9


def page(*abilities: str, params_b: float = 7, **values: object) -> str:
    return str(ask(*abilities, params_b=params_b, **values))


def ask(*abilities: str, params_b: float = 7, **values: object):
    situation = Situation(abilities, params_b, **values)
    return advise(situation, fake_costs(situation), notes=("Only arithmetic.",))


SITUATIONS = [
    {"abilities": ("dialogue", "long"), "context": 16384, "batch": 8, "memory_bytes": 24 * GB},
    {"abilities": ("all",), "context": 16384, "memory_bytes": 24 * GB},
    {"abilities": ("all",), "params_b": 0.5},
    {"abilities": ("emergent",), "params_b": 46.7, "moe": True, "memory_bytes": 80 * GB, "family": "Mixtral"},
    {"abilities": ("nlp",), "params_b": 2.8, "has_kv": False, "family": "Mamba"},
    {"abilities": ("trust",), "params_b": 70, "memory_bytes": 10 * GB},
    {"abilities": ("mr",), "params_b": 13, "tolerance": 0.0},
]


@pytest.mark.parametrize("values", SITUATIONS)
def test_pages_are_short_and_narrow(values):
    lines = page(
        *values["abilities"], **{key: value for key, value in values.items() if key != "abilities"}
    ).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 70
    assert all(line == line.rstrip() for line in lines)
    assert not [line for line in lines if " -0.0 " in line]


@pytest.mark.parametrize("values", SITUATIONS)
def test_the_dict_is_json_and_holds_the_choice(values):
    advice = ask(*values["abilities"], **{key: value for key, value in values.items() if key != "abilities"})
    data = json.loads(json.dumps(advice.to_dict()))
    assert data["scheme"] == (advice.scheme or None)
    assert {each["scheme"] for each in data["candidates"]} == {each.scheme for each in advice.candidates}
    assert [rule["id"] for rule in data["rules"]] == [rule.id for rule in advice.rules]
    assert [each["if"] for each in data["changes"]] == [each.if_ for each in advice.changes]
    assert all("if_" not in each for each in data["changes"])
    assert data["situation"]["topics"] == list(advice.situation.topics)


def test_the_page_says_what_was_chosen_and_why():
    advice = ask("dialogue", memory_bytes=24 * GB)
    text = str(advice)
    assert f"Choice: {advice.scheme}, " in text
    assert "GiB)" in text
    for part in ("The study's advice", "Published losses", "Where advice and data disagree", "What would change it"):
        assert part in text
    (chosen,) = (line for line in text.splitlines() if "<-" in line)
    assert chosen.split()[0] == advice.scheme
    assert "Assumed: Only arithmetic." in text


def test_a_choice_that_loses_too_much_is_called_that():
    text = page("dialogue", "long", context=16384, batch=8, memory_bytes=24 * GB)
    assert ", more than the tolerance" in text
    assert "think twice" in text


def test_no_choice_says_what_is_missing():
    advice = ask("dialogue", params_b=70, memory_bytes=10 * GB)
    assert (advice.scheme, advice.choice.missing_bytes > 0) == ("", True)
    text = str(advice)
    assert "Choice: none" in text
    assert f"lacks {advice.choice.missing_bytes / 1e9:,.2f} GB" in text


@pytest.mark.parametrize(
    ("abilities", "params_b", "scheme", "sentence"),
    [
        (
            ("dialogue",),
            7,
            "W8KV8",
            "The study advises each part, or fewer bits (W8, W8A8, KV4), and says nothing of both",
        ),
        (("dialogue", "long"), 7, "W8KV8", "The study advises these bits, or fewer (W8, W8A8, KV8, W8KV8)."),
        (("icl",), 7, "W4", "The study advises these bits, or fewer (W4, W4A8, KV4)."),
        (("dialogue",), 70, "W4KV8", "The study advises other bits (W8, W8A8, KV4)"),
        (("trust",), 7, "W8KV4", "The study advises other bits (none): numbers went before rules."),
    ],
)
def test_how_a_choice_stands_to_the_advice(abilities, params_b, scheme, sentence):
    advice = ask(*abilities, params_b=params_b)
    assert advice.scheme == scheme
    assert any(reason.startswith(sentence) for reason in advice.why)


def test_the_border_is_explained_on_the_border_only():
    assert "the study says nothing of 13B itself" in page("mr", params_b=13)
    assert "the study says nothing of 13B itself" not in page("mr", params_b=7)


def test_what_is_advised_after_modifiers_is_shown_where_it_differs():
    small, seven = page("nlp", params_b=2), page("nlp", params_b=7)
    assert "here " in small
    assert "one step safer" in small
    assert "  here " not in seven


def test_the_very_models_published_losses_are_shown():
    advice = ask("dialogue", model="meta-llama/Llama-2-7b-chat-hf", family="LLaMA2")
    assert advice.own["KV4"]["mt_bench"] == pytest.approx(-1.8, abs=0.05)
    assert "This very model: " in str(advice)
    assert ask("dialogue", model="my/own").own == {}


def test_fits_is_a_column_only_where_memory_is_limited():
    assert "fits" in page("nlp", memory_bytes=24 * GB)
    assert " fits" not in page("nlp").split("Schemes at")[1]
