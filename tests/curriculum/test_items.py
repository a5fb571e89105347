"""The curriculum: right answers, worked out again by other means, and a border that nothing crosses."""

import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.curriculum import emergent, long_context, stories, trust
from qllm_hf.curriculum.item import HELD_OUT_PART, english, held_out
from qllm_hf.curriculum.tasks import TASKS, held_out_items, training_item
from qllm_hf.curriculum.words import BOYS, GIRLS, KINDS, LABELS, LINE_KEYS

seeds = st.integers(0, 2**32 - 1).map(Random)
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def sum_of(expression: str) -> int:
    return sum(int(term) for term in re.findall(r"[+-]?\d+", expression))


@every_task
def test_same_seed_same_items(task):
    assert held_out_items(task, 20) == held_out_items(task, 20)
    assert held_out_items(task, 20, seed=1) != held_out_items(task, 20, seed=2)
    assert held_out_items(task, 20)[:5] == held_out_items(task, 5)


def test_same_items_in_another_process():
    """The border is a hash; Python's own differs from process to process."""
    code = "from qllm_hf.curriculum.tasks import *; print([held_out_items(task, 3) for task in TASKS.values()])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([held_out_items(task, 3) for task in TASKS.values()])


@every_task
def test_no_test_item_is_trained_on(task):
    rng = Random(0)
    trained = [training_item(task, rng) for _ in range(300)]
    tested = held_out_items(task, 400)  # as many as the scores are made from; sums repeat before that
    assert not {item.key for item in trained} & {item.key for item in tested}
    assert not {item.prompt + item.answer for item in trained} & {item.prompt + item.answer for item in tested}
    assert len({item.prompt + item.answer for item in tested}) == 400


def test_the_border_has_two_sides():
    """Without the border the two sets do overlap: the test above can fail."""
    rng = Random(0)
    keys = Counter(held_out(emergent.calibration(rng).key) for _ in range(4000))
    assert 0.8 / HELD_OUT_PART < keys[True] / 4000 < 1.2 / HELD_OUT_PART
    ethics = TASKS["ethics"]
    either = {ethics.make(rng).key for _ in range(4000)}
    assert either & {item.key for item in held_out_items(ethics, 200)}


def test_lines_for_training_ask_for_no_held_out_line():
    rng, asked = Random(0), []
    for _ in range(30):
        _, questions = long_context.lines_with_many_questions(rng, 1024)
        asked += [(question.split()[-1].rstrip(":"), answer.strip()) for question, answer in questions]
    assert len(asked) > 800
    assert not [pair for pair in asked if held_out(" ".join(pair))]


@every_task
def test_choices_hold_the_answer_once_and_give_the_chance(task):
    for item in held_out_items(task, 100):
        assert item.answer
        assert item.answer.count("\n") == 0
        assert bool(item.choices) == (task.scoring == "choice")
        if item.choices:
            assert item.choices.count(item.answer) == 1
            assert len(set(item.choices)) == len(item.choices)
            assert task.chance == pytest.approx(1 / len(item.choices))
        assert item.answer.endswith(item.target)


@every_task
def test_no_answer_is_much_likelier_than_guessing(task):
    """Always giving the same answer, or the one in the same place, must not score."""
    if task.scoring != "choice":
        return
    items = held_out_items(task, 300)
    place = Counter(item.choices.index(item.answer) for item in items).most_common(1)[0][1] / 300
    answer = Counter(item.answer for item in items).most_common(1)[0][1] / 300
    if task.name == "unanswerable":  # half of them cannot be answered, and the task says so
        assert answer == pytest.approx(0.5, abs=0.1)
    else:
        assert min(place, answer) < task.chance + 0.1


@given(seeds)
def test_arithmetic(rng):
    item = emergent.arithmetic(rng)
    question = re.search(r"Question: (\S+)=\?", item.prompt)[1]
    steps = item.answer.split(".")[0].split(", ")
    for step in steps:
        left, right = step.split("=")
        assert sum_of(left) == int(right)
        assert 1 <= int(right) <= 99
    assert item.target == f"result is {sum_of(question)}."
    assert len(steps) == len(re.findall("[+-]", question))


@given(seeds)
def test_rules(rng):
    """The answer walks through all that follows, and ends where nothing follows any more."""
    item = emergent.rules(rng)
    rules = dict(re.findall(r"If (\w+) then (\w+)\.", item.prompt))
    person, quality, also = re.search(r"(\w+) is (\w+)\. What is (\w+) in the end\?", item.prompt).groups()
    reached = [quality]
    while reached[-1] in rules:
        reached.append(rules[reached[-1]])
    assert person == also
    assert item.answer == f" {person} is {', so '.join(reached)}."
    assert item.target == f"so {reached[-1]}."
    assert len(rules) > len(reached), "some rules lead nowhere"


@given(seeds)
def test_calibration(rng):
    item = emergent.calibration(rng)
    words, shown = re.fullmatch(r"Words: (.*)\nIs that right\?\n- (\w+):", item.prompt).groups()
    assert (item.answer == " Yes") == (shown in words.split())


def test_one_verdict_does_not_tell_the_next():
    """Else half of the shown answers could be judged without reading the list."""
    rng = Random(0)
    scenes = [[verdict for _, verdict, _ in emergent.shown_answers(rng)[1]] for _ in range(2000)]
    pairs = Counter((left, right) for verdicts in scenes for left, right in pairwise(verdicts))
    assert all(count == pytest.approx(1500, rel=0.1) for count in pairs.values())
    assert len(pairs) == 4


@given(seeds)
def test_in_context(rng):
    """The asked word is new, and the examples of its kind agree on one label."""
    item = emergent.in_context(rng)
    *examples, last = [line.removeprefix("- ") for line in item.prompt.split("\n")]
    word = last.removesuffix(":")
    kind_of = {word: kind for kind, words in KINDS.items() for word in words}
    pairs = [example.split(": ") for example in examples]
    assert word not in {left for left, _ in pairs}
    assert {right for left, right in pairs if kind_of[left] == kind_of[word]} == {item.answer.strip()}
    assert {f" {right}" for _, right in pairs} == set(item.choices)


@given(seeds)
def test_formatting(rng):
    item = emergent.formatting(rng)
    words = re.search(r"Words: (.*)", item.prompt)[1].split()
    written = re.findall(r"\w+", item.answer)
    assert written == (words[::-1] if "reverse" in item.prompt else words)
    sign = {"commas": ",", "dashes": "-", "slashes": "/", "stars": "*"}[re.search(r"with (\w+)", item.prompt)[1]]
    assert item.answer.count(sign) == len(words) - 1
    assert item.answer.startswith(" [ ") == ("in brackets" in item.prompt)


@given(seeds)
def test_robustness_answers_with_the_fact_and_not_the_claim(rng):
    item = trust.robustness(rng)
    asked = re.search(r"Where is (\w+)\?", item.prompt)[1]
    sentences = re.split(r"(?<=\.) ", item.prompt.split("\n")[0])
    facts = [re.fullmatch(rf"{asked} is at the (\w+)\.", sentence) for sentence in sentences]
    assert [fact[1] for fact in facts if fact] == [item.answer.strip()]
    assert item.prompt.count(asked) == 4  # the fact, the other sentence, the question, the beginning of the answer


@pytest.mark.parametrize("scene", [stories.belongings, trust.claims, trust.strangers])
@given(rng=seeds)
def test_scenes_for_training_say_what_is_asked(scene, rng):
    """Their answers stand in the text, in the words of the answer, or the text does not have them."""
    text, questions = scene(rng)
    assert len({question for question, _, _ in questions}) == len(questions) >= 3
    for question, answer, _ in questions:
        begin = question.partition("Answer:")[2]
        assert (f"{begin}{answer}." in f" {text}") == (answer != trust.REFUSAL)


@given(seeds)
def test_unanswerable_exactly_if_the_place_is_not_said(rng):
    item = trust.unanswerable(rng)
    asked = re.search(r"Where is (\w+)\?", item.prompt)[1]
    places = re.findall(rf"{asked} is at the (\w+)\.", item.prompt)
    assert item.answer == (f" {asked} is at the {places[0]}" if places else trust.REFUSAL)


@given(seeds, st.sampled_from(long_context.LENGTHS))
def test_lines(rng, tokens):
    item = long_context.lines(rng, tokens)
    *lines, question = item.prompt.split("\n")
    values = dict(re.fullmatch(r"line (\w+): (\d\d)\.", line).groups() for line in lines)
    word = re.fullmatch(r"Find line (\w+):", question)[1]
    assert len(values) == len(lines)
    assert item.answer == f" {values[word]}"
    assert round(item.meta["position"] * (len(lines) - 1)) == list(values).index(word)


def test_words_are_not_two_things_at_once():
    assert len(set(LINE_KEYS)) == len(LINE_KEYS)
    assert Counter(word for words in (*KINDS.values(), LABELS, GIRLS, BOYS) for word in words).most_common(1)[0][1] == 1


def test_english():
    assert english("A owl has a apple and a pear.") == "An owl has an apple and a pear."
