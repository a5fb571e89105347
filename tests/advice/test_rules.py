"""The study's recommendations come out for the study's own models, and what changes them changes them."""

from dataclasses import replace

import pytest

from qllm_hf.advice.merge import Recommendation, adjust, merge
from qllm_hf.advice.rules import MODIFIERS, RULES, modifiers_for, rules_for
from qllm_hf.advice.situation import Situation
from qllm_hf.published.read import models
from qllm_hf.scheme import Scheme

# One model of each family, and how large it is
STUDY = {
    "OPT": "OPT-6.7B",
    "LLaMA2": "LLaMA2-7B",
    "Falcon": "Falcon-40B",
    "Bloomz": "Bloomz-7.1B",
    "Mistral": "Mistral-7B",
    "Mixtral": "Mixtral-8x7B",
    "ChatGLM": "ChatGLM3-6B",
    "Vicuna": "Vicuna-13B",
    "LongChat": "LongChat-7B",
    "StableLM": "StableLM-3B-zephyr",
    "Gemma": "Gemma-7B-it",
    "Mamba": "Mamba-2.8B-chat",
}


def situation(name: str, *abilities: str, context: int = 2048) -> Situation:
    model = models()[name]
    return Situation(
        abilities,
        model.params_b,
        moe=model.is_moe,
        context=context,
        family=model.family,
        model=name,
        has_kv=model.family != "Mamba",
    )


def bits(found: Recommendation) -> tuple[str, str, str, str]:
    return found.w, found.wa, found.kv, found.joint


@pytest.mark.parametrize("name", STUDY.values(), ids=STUDY)
@pytest.mark.parametrize(
    ("ability", "rules", "expected", "avoid"),
    [
        ("nlp", ["R1"], ("W4", "W4A8", "KV4", "W8KV4"), {"W2", "W4A4"}),
        ("dialogue", ["R5"], ("W8", "W8A8", "KV4", ""), {"W3", "KV3", "W2", "KV2", "W4A4"}),
        ("long", ["R6"], ("W4", "W4A8", "KV8", "W8KV8"), {"KV3"}),
    ],
)
def test_rules_that_speak_of_every_size(name, ability, rules, expected, avoid):
    asked = situation(name, ability)
    found = rules_for(asked)
    assert [rule.id for rule in found] == rules
    assert bits(merge(found)) == expected
    assert set(merge(found).avoid) == avoid
    if not asked.has_kv:
        assert bits(adjust(merge(found), asked))[2:] == ("", "")


EMERGENT = ["OPT-6.7B", "LLaMA2-7B", "LLaMA2-13B", "Bloomz-7.1B", "Mistral-7B", "ChatGLM3-6B", "Mixtral-8x7B"]


@pytest.mark.parametrize("name", EMERGENT)
@pytest.mark.parametrize(
    ("topic", "rule", "expected"),
    [
        ("icl", "R2", ("W4", "W4A8", "KV4", "")),
        ("if", "R2", ("W4", "W4A8", "KV4", "")),
        ("mr", "R3", ("W8", "W8A8", "KV8", "")),
        ("sc", "R3", ("W8", "W8A8", "KV8", "")),
    ],
)
def test_emergent_abilities_of_models_up_to_13b(name, topic, rule, expected):
    found = rules_for(situation(name, topic))
    assert [each.id for each in found] == [rule]
    assert bits(merge(found)) == expected
    assert merge(found).avoid == ("W4A4",)


@pytest.mark.parametrize("name", ["OPT-30B", "OPT-66B", "LLaMA2-70B", "Falcon-40B", "Falcon-180B", "Bloomz-175B"])
@pytest.mark.parametrize("topic", ["icl", "if", "mr", "sc", "emergent"])
def test_emergent_abilities_of_larger_models(name, topic):
    found = rules_for(situation(name, topic))
    assert [each.id for each in found] == ["R4"]
    assert bits(merge(found)) == ("W4", "W4A8", "KV4", "")


@pytest.mark.parametrize("params_b", [12.9, 13.0, 13.02, 13.4])
def test_13b_itself_counts_with_the_smaller_ones_however_it_is_counted(params_b):
    assert [rule.id for rule in rules_for(Situation(("mr",), params_b))] == ["R3"]
    assert [rule.id for rule in rules_for(Situation(("mr",), 13.6))] == ["R4"]


def test_a_mixture_of_experts_is_judged_like_7b():
    dense, experts = situation("LLaMA2-7B", "all"), situation("Mixtral-8x7B", "all")
    assert (dense.size_b, experts.size_b) == (7, 7)
    assert rules_for(dense) == rules_for(experts)
    assert adjust(merge(rules_for(dense)), dense) == adjust(merge(rules_for(experts)), experts)
    assert "experts" in {modifier.id for modifier in modifiers_for(experts)}
    as_dense = replace(experts, moe=False)
    assert rules_for(as_dense) != rules_for(experts), "by all of its parameters it would be a large model"


def test_a_small_mixture_of_experts_stays_small():
    assert Situation(("nlp",), 3, moe=True).size_b == 3


def test_a_small_model_gets_one_step_safer():
    small = situation("Gemma-2B-it", "nlp")
    published = merge(rules_for(small))
    assert bits(published) == ("W4", "W4A8", "KV4", "W8KV4")
    assert bits(adjust(published, small)) == ("W8", "W4A8", "KV8", "W8KV8")
    assert adjust(published, situation("LLaMA2-7B", "nlp")) == published
    dialogue = situation("Gemma-2B-it", "dialogue")
    assert bits(adjust(merge(rules_for(dialogue)), dialogue)) == ("W8", "W8A8", "KV8", "")


@pytest.mark.parametrize(
    ("abilities", "params_b", "expected"),
    [
        (("nlp", "dialogue"), 7, ("W8", "W8A8", "KV4", "W8KV4")),
        (("nlp", "long"), 7, ("W4", "W4A8", "KV8", "W8KV8")),
        (("dialogue", "long"), 7, ("W8", "W8A8", "KV8", "W8KV8")),
        (("nlp", "icl"), 7, ("W4", "W4A8", "KV4", "W8KV4")),
        (("nlp", "sc"), 7, ("W8", "W8A8", "KV8", "W8KV8")),
        (("nlp", "sc"), 70, ("W4", "W4A8", "KV4", "W8KV4")),
        (("all",), 7, ("W8", "W8A8", "KV8", "W8KV8")),
        (("all",), 70, ("W8", "W8A8", "KV8", "W8KV8")),
        (("emergent",), 70, ("W4", "W4A8", "KV4", "")),
        (("trust",), 7, ("", "", "", "")),
    ],
)
def test_of_several_rules_the_safest_bits_count(abilities, params_b, expected):
    asked = Situation(abilities, params_b)
    found = rules_for(asked)
    assert bits(merge(found)) == expected
    for kind, bit in (("w", "w"), ("kv", "kv")):
        given = [Scheme.parse(text) for rule in found if (text := getattr(rule, kind))]
        if given:
            assert getattr(Scheme.parse(getattr(merge(found), kind)), bit) == max(getattr(each, bit) for each in given)
    avoided = {scheme for rule in found for scheme in rule.avoid}
    assert set(merge(found).avoid) == avoided


def test_order_of_rules_does_not_matter():
    found = rules_for(Situation(("all",), 7))
    forward, backward = merge(found), merge(tuple(reversed(found)))
    assert (bits(forward), set(forward.avoid)) == (bits(backward), set(backward.avoid))


def test_a_long_context_makes_the_long_rule_apply():
    assert [rule.id for rule in rules_for(situation("Vicuna-7B", "dialogue"))] == ["R5"]
    assert [rule.id for rule in rules_for(situation("Vicuna-7B", "dialogue", context=4096))] == ["R5", "R6"]
    assert [rule.id for rule in rules_for(situation("Vicuna-7B", "dialogue", context=4095))] == ["R5"]


@pytest.mark.parametrize(
    ("avoid", "scheme", "by"),
    [
        (("W3",), "W3", "W3"),
        (("W3",), "W2", "W3"),
        (("W3",), "W3KV8", "W3"),
        (("W3",), "W4", ""),
        (("KV3",), "W8KV2", "KV3"),
        (("KV3",), "W3", ""),
        (("W4A4",), "W4A4", "W4A4"),
        (("W4A4",), "W3A4KV8", "W4A4"),
        (("W4A4",), "W8A4", ""),
        (("W4A4",), "W4", ""),
        (("W2", "W4A4"), "FP16", ""),
    ],
)
def test_what_to_avoid_is_avoided_with_all_below_it(avoid, scheme, by):
    assert Recommendation(avoid=avoid).avoids(Scheme.parse(scheme)) == by


@pytest.mark.parametrize(
    ("scheme", "covered"),
    [
        ("W4", True),
        ("W8", True),
        ("W3", False),
        ("W4A8", True),
        ("W8A8", True),
        ("W4A4", False),
        ("KV4", True),
        ("KV3", False),
        ("W8KV4", True),
        ("W8KV8", True),
        ("W4KV4", False),
        ("W4A8KV8", False),
    ],
)
def test_a_recommendation_covers_its_bits_and_more(scheme, covered):
    assert Recommendation("W4", "W4A8", "KV4", "W8KV4").covers(Scheme.parse(scheme)) is covered
    assert not Recommendation().covers(Scheme.parse(scheme))


def test_every_rule_and_modifier_can_apply_and_names_its_sources():
    asked = [Situation(("all",), size, moe=moe, has_kv=kv) for size in (1, 7, 70) for moe in (0, 1) for kv in (0, 1)]
    assert {rule.id for each in asked for rule in rules_for(each)} == {rule.id for rule in RULES}
    assert {modifier.id for each in asked for modifier in modifiers_for(each)} == {each.id for each in MODIFIERS}
    assert all(each.sources for each in (*RULES, *MODIFIERS))
    assert all(rule.findings for rule in RULES)


def test_strictest_is_not_said_of_one_rule():
    assert "strictest" not in {each.id for each in modifiers_for(Situation(("nlp",), 7))}
    assert "strictest" in {each.id for each in modifiers_for(Situation(("nlp", "dialogue"), 7))}
