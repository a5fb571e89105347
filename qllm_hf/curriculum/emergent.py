"""Emergent abilities: learning from examples, following instructions, reasoning in steps, knowing what is right."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from .item import Item, Scene, shuffled
from .words import KINDS, LABELS, LINE_KEYS, PEOPLE, QUALITIES


def in_context(rng: Random, shots: int = 9) -> Item:
    """A new word, to be labelled as the examples label words of its kind. Three labels, chance 1/3.

    The labels are random words, so the rule can only come from the examples.
    """
    kinds = rng.sample(sorted(KINDS), 3)
    labels = dict(zip(kinds, rng.sample(LABELS, 3), strict=True))
    order = kinds + [rng.choice(kinds) for _ in range(shots - 3)]
    rng.shuffle(order)
    used: set[str] = set()

    def word_of(kind: str) -> str:
        word = rng.choice([word for word in KINDS[kind] if word not in used])
        used.add(word)
        return word

    examples = [f"- {word_of(kind)}: {labels[kind]}" for kind in order]
    asked = rng.choice(kinds)
    word = word_of(asked)
    choices = tuple(f" {label}" for label in labels.values())
    prompt = "\n".join([*examples, f"- {word}:"])
    return Item(prompt, f" {labels[asked]}", key=f"{word} {labels[asked]}", choices=choices)


_SEPARATORS = {"commas": ",", "dashes": "-", "slashes": "/", "stars": "*"}


def formatting(rng: Random) -> Item:
    """A list of words, to be written as an instruction says. Written, compared as a whole."""
    words = rng.sample(LINE_KEYS, rng.randint(2, 4))
    name = rng.choice(sorted(_SEPARATORS))
    order = rng.choice(("in the same order", "in reverse order"))
    wrap = rng.choice(("", " in brackets"))
    ordered = words[::-1] if order == "in reverse order" else words
    body = f" {_SEPARATORS[name]} ".join(ordered)
    answer = f" [ {body} ]" if wrap else f" {body}"
    prompt = f"Words: {' '.join(words)}\nWrite them {order} with {name}{wrap}.\nAnswer:"
    return Item(prompt, answer, key=" ".join(words))


def arithmetic(rng: Random) -> Item:
    """Three or four additions and subtractions, worked out step by step. Written; the final number counts."""
    value = rng.randint(10, 60)
    terms, steps = [str(value)], []
    for _ in range(rng.randint(3, 4)):
        sign, operand = _operation(rng, value)
        result = value + operand if sign == "+" else value - operand
        terms.append(f"{sign}{operand}")
        steps.append(f"{value}{sign}{operand}={result}")
        value = result
    question = "".join(terms)
    answer = f" {', '.join(steps)}. So the result is {value}."
    return Item(f"Question: {question}=?\nAnswer:", answer, key=question, target=f"result is {value}.")


def _operation(rng: Random, value: int) -> tuple[str, int]:
    """A sign and a one-digit number that keep the value in 1..99."""
    operand = rng.randint(1, 9)
    if value + operand > 99:
        return "-", operand
    if value - operand < 1:
        return "+", operand
    return rng.choice("+-"), operand


def rules(rng: Random) -> Item:
    """What a person is in the end, by a chain of rules worked out step by step. Written; the last word counts."""
    length = rng.randint(2, 4)
    chain = rng.sample(QUALITIES, length + 4)
    path, others = chain[: length + 1], chain[length + 1 :]
    pairs = [*pairwise(path), (others[0], others[1]), (others[2], path[rng.randrange(1, length)])]
    person = rng.choice(PEOPLE)
    text = " ".join(f"If {left} then {right}." for left, right in shuffled(rng, pairs))
    prompt = f"{text} {person} is {path[0]}. What is {person} in the end?\nAnswer:"
    answer = f" {person} is {', so '.join(path)}."
    return Item(prompt, answer, key=" ".join(path), target=f"so {path[-1]}.")


def calibration(rng: Random) -> Item:
    """Whether a shown answer is right: a word that should be one of a list. Two choices, chance 1/2."""
    text, answers = shown_answers(rng)
    question, verdict, key = rng.choice(answers)
    return Item(text + question, verdict, key=key, choices=(" Yes", " No"))


def shown_answers(rng: Random) -> Scene:
    """A list as for `calibration`, with four words that were shown as answers, each right or wrong by chance."""
    words = rng.sample(LINE_KEYS, 12)
    length = rng.randint(5, 8)
    listed, others = words[:length], words[length:]
    answers = []
    for inside, outside in zip(shuffled(rng, listed)[:4], others[:4], strict=True):
        word, verdict = rng.choice(((inside, " Yes"), (outside, " No")))
        answers.append((f"\n- {word}:", verdict, f"{' '.join(listed)} {word}"))
    return f"Words: {' '.join(listed)}\nIs that right?", answers
