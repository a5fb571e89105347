"""Exercises: documents that no test asks for, each with one thing to learn of what the tasks take for granted."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from qllm_hf.curriculum import dialogue
from qllm_hf.curriculum.dialogue import END
from qllm_hf.curriculum.item import english, held_out, shuffled
from qllm_hf.curriculum.tasks import Task, training_item
from qllm_hf.curriculum.words import COLOURS, KINDS, LABELS, LINE_KEYS, PEOPLE, PLACES, THINGS

from .shares import (
    BINDINGS,
    FEW_WORDS,
    IN_WORDS,
    IN_WORDS_ONCE,
    KINDS_OF_WORDS,
    MARKS,
    MEMBERS,
    OF_PEOPLE,
    PAIRS,
)

T = TypeVar("T")
Document = list[tuple[str, bool]]
"""Pieces of text, and whether each is an answer."""

FIRST_TURN = Task("first_turn", "dialogue", dialogue.first_turn, "written")
ARE_THEY_RIGHT = "\nIs that right?\n"


def kinds(rng: Random) -> Document:
    """What kind of word each word is: what labelling from examples takes for granted."""
    pieces: Document = []
    for _ in range(12):
        kind = rng.choice(sorted(KINDS))
        pieces += [(f"- {rng.choice(KINDS[kind])} is of the kind", False), (f" {kind}\n", True)]
    return pieces


def repetition(rng: Random) -> Document:
    """Random words, and the same words again: nothing to test, but every word of it teaches to look things up."""
    words = "".join(f" {word}" for word in rng.choices(LINE_KEYS + PEOPLE, k=rng.randint(10, 60)))
    return [(f"Words:{words}\nAgain:", False), (words + END, True)]


def first_turn(rng: Random) -> Document:
    """How a dialogue begins. No test asks for it: what is asked later is what makes a dialogue one of its own."""
    item = training_item(FIRST_TURN, rng)
    return [(item.prompt, False), (item.answer + END, True)]


def few_words(rng: Random) -> Document:
    """Labels as in `in_context`, but some words come again: what is the same is found before what is alike."""
    groups = rng.sample(sorted(KINDS), 3)
    labels = dict(zip(groups, rng.sample(LABELS, 3), strict=True))
    words = {kind: rng.sample(KINDS[kind], 2) for kind in groups}
    pieces: Document = []
    for kind in rng.choices(groups, k=14):
        pieces += [(f"- {rng.choice(words[kind])}:", False), (f" {labels[kind]}\n", True)]
    return pieces


def members(rng: Random) -> Document:
    """Whether a list has a word: the first step of telling right answers from wrong ones, and hard to learn there."""
    words = rng.sample(LINE_KEYS + PEOPLE, 12)
    length = rng.randint(3, 8)
    inside = rng.sample(words[:length], min(length, 4))
    verdicts = [(word, " Yes") for word in inside] + [(word, " No") for word in words[length:][: len(inside)]]
    return [(f"Words: {' '.join(words[:length])}\n", False), *_asked(shuffled(rng, verdicts))]


def pairs(rng: Random) -> Document:
    """Whether two words belong together, where both are there: the second step. Half of the texts say where people are,
    as texts with shown answers do."""
    length = rng.randint(2, 5)
    if rng.random() < 0.5:
        left, right = rng.sample(PEOPLE, length), rng.sample(PLACES, length)
        told = " ".join(f"{person} is at the {place}." for person, place in zip(left, right, strict=True))
    else:
        words = rng.sample(LINE_KEYS + PEOPLE, 2 * length)
        left, right = words[:length], words[length:]
        told = "Pairs: " + ", ".join(f"{a} {b}" for a, b in zip(left, right, strict=True))
    verdicts = [(f"{a} {b}", " Yes") for a, b in zip(left, right, strict=True)]
    verdicts += [(f"{a} {b}", " No") for a, b in zip(left, right[1:] + right[:1], strict=True)]
    return [(f"{told}\n", False), *_asked(shuffled(rng, verdicts))]


def of_people(rng: Random) -> Document:
    """Answers to where somebody is, to be marked, one for each person: after a right and a wrong one, the second mark
    could be told from the first."""
    text, answers = _answers_about_people(rng)
    asked = _one_of_each(rng, answers, 2)
    marked = [(f"{person} {shown}", verdict) for person, shown, verdict, key in asked if not held_out(key)]
    return [(f"{text}{ARE_THEY_RIGHT}", False), *_asked(marked)]


def _answers_about_people(rng: Random) -> tuple[str, list[tuple[str, str, str, str]]]:
    """A text that says where three people are, and for each of them, one after the other, a right and a wrong place:
    person, place, verdict and key. One wrong place in three is right for somebody else."""
    people, places = rng.sample(PEOPLE, 3), rng.sample(PLACES, 6)
    text = " ".join(f"{person} is at the {place}." for person, place in zip(people, places, strict=False))
    answers = []
    for person, place, foreign in zip(people, places[:3], places[3:], strict=True):
        others = [other for other in places[:3] if other != place]
        wrong = rng.choice(others) if rng.random() < 1 / 3 else foreign
        for shown, verdict in ((place, " Yes"), (wrong, " No")):
            answers.append((person, shown, verdict, f"{person} {place} {shown}"))
    return text, answers


def marks(rng: Random) -> Document:
    """Whether a place was said at all, in a list or of somebody: between telling whether a list has a word and telling
    whether an answer is right."""
    people, places = rng.sample(PEOPLE, 3), rng.sample(PLACES, 8)
    if rng.random() < 0.5:
        told = f"Words: {' '.join(places[:4])}"
    else:
        told = " ".join(f"{person} is at the {place}." for person, place in zip(people, places, strict=False))
    said = places[: 4 if told.startswith("Words") else 3]
    asked = shuffled(
        rng,
        [rng.choice(((inside, " Yes"), (outside, " No"))) for inside, outside in zip(said, places[4:], strict=False)],
    )
    return [(told + ARE_THEY_RIGHT, False), *_asked(asked)]


def in_words(rng: Random) -> Document:
    """Answers in whole sentences, a right and a wrong one for each person. No test asks like this: it begins to teach
    what marking is, but marks of short lists are learned sooner."""
    text, answers = _answers_about_people(rng)
    return _marked_in_words(text, shuffled(rng, answers))


def in_words_once(rng: Random) -> Document:
    """The same with one answer for each person."""
    text, answers = _answers_about_people(rng)
    return _marked_in_words(text, _one_of_each(rng, answers, 2))


def _one_of_each(rng: Random, values: list[T], size: int) -> list[T]:
    """One value of each group of neighbours, in random order."""
    groups = [values[begin : begin + size] for begin in range(0, len(values), size)]
    return shuffled(rng, [rng.choice(group) for group in groups])


def _marked_in_words(text: str, answers: list[tuple[str, str, str, str]]) -> Document:
    pieces: Document = [(text, False)]
    for person, shown, verdict, key in answers:
        if not held_out(key):
            pieces += [(f"\nWhere is {person}? At the {shown}:", False), (verdict, True)]
    return [*pieces, (END, True)]


def bindings(rng: Random) -> Document:
    """Which colour a thing has, and which thing has a colour: what second turns ask for."""
    length = rng.randint(2, 4)
    told = list(zip(rng.sample(COLOURS, length), rng.sample(THINGS, length), strict=True))
    text = english(f"I have {' and '.join(f'a {colour} {thing}' for colour, thing in told)}.\n")
    answers = [(thing, f" {colour}") for colour, thing in told] + [(colour, f" {thing}") for colour, thing in told]
    return [(text, False), *_asked(shuffled(rng, answers))]


def _asked(answers: list[tuple[str, str]]) -> Document:
    """A line for every word and its answer."""
    return [piece for word, answer in answers for piece in ((f"- {word}:", False), (f"{answer}\n", True))]


EXERCISES: dict[str, Callable[[Random], Document]] = {
    "first_turn": first_turn,
    KINDS_OF_WORDS: kinds,
    FEW_WORDS: few_words,
    MEMBERS: members,
    PAIRS: pairs,
    BINDINGS: bindings,
    MARKS: marks,
    OF_PEOPLE: of_people,
    IN_WORDS: in_words,
    IN_WORDS_ONCE: in_words_once,
}
