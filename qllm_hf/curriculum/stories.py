"""Little stories: fluent text for perplexity, and the questions about such text (understanding, cloze, describing)."""

from __future__ import annotations

from random import Random

from .item import Item, Scene, english, shuffled
from .words import ANIMALS, COLOURS, FOODS, JOBS, PEOPLE, PLACES, QUALITIES, THINGS, WEATHER, her

_OPENINGS = (
    "Once upon a time there was a {job} named {a}.",
    "{a} lived in a {quality} house near the {place}.",
    "One day {a} went to the {place}.",
    "It was a {quality} day, and {a} was at the {place}.",
    "{a} had a {quality} {animal}.",
    "There was {weather} over the {place}, and {a} stayed at home.",
)
_MEETINGS = (
    "There {she} met {b}, who had a {colour} {thing}.",
    "{Her} friend {b} came with a {colour} {thing}.",
    "On the way {she} saw {b} with a {colour} {thing}.",
)
_WISHES = (
    "{a} liked the {thing} very much.",
    '"What a {quality} {thing}!" said {a}.',
    "{a} wanted to have a {thing} too.",
    '"May I see your {thing}?" asked {a}.',
)
_EVENTS = (
    "Then the {animal2} took the {thing} and ran to the {place2}.",
    "But the {thing} fell into the {place2}.",
    "Then they lost the {thing} near the {place2}.",
    "But a {animal2} came and sat on the {thing}.",
)
_FEELINGS = ("{b} was very sad.", "{b} began to cry.", "{b} did not know what to do.", '"Oh no!" said {b}.')
_HELPS = (
    "{a} looked for the {thing} until {she} found it.",
    "{a} was {quality2}, and {she} got the {thing} back.",
    "A {job2} helped them to get the {thing} back.",
    "{a} gave some {food} to the {animal2} and took the {thing}.",
)
_ENDINGS = (
    "They were happy and ate {food} together.",
    "{b} thanked {a}, and they played with the {thing} all day.",
    '"Thank you," said {b}, and gave {a} some {food}.',
    "Then {a} and {b} went home with the {colour} {thing}.",
    "From that day on {a} and {b} were good friends.",
)


def _story_parts(rng: Random) -> tuple[dict[str, str], list[str]]:
    a, b = rng.sample(PEOPLE, 2)
    place, place2 = rng.sample(PLACES, 2)
    animal, animal2 = rng.sample(ANIMALS, 2)
    quality, quality2 = rng.sample(QUALITIES, 2)
    job, job2 = rng.sample(JOBS, 2)
    she, her_, _ = her(a)
    words = {
        **dict(a=a, b=b, place=place, place2=place2, animal=animal, animal2=animal2),
        **dict(quality=quality, quality2=quality2, job=job, job2=job2, she=she, Her=her_.capitalize()),
        **dict(colour=rng.choice(COLOURS), thing=rng.choice(THINGS), food=rng.choice(FOODS)),
        **dict(weather=rng.choice(WEATHER)),
    }
    turns = (_OPENINGS, _MEETINGS, _WISHES, _EVENTS, _FEELINGS, _HELPS, _ENDINGS)
    return words, [rng.choice(sentences).format(**words) for sentences in turns]


def story(rng: Random) -> Item:
    """A story of seven sentences, to be predicted as a whole: the prompt is empty."""
    words, sentences = _story_parts(rng)
    return Item("", english(" ".join(sentences)), key=f"{words['a']} {words['b']} {words['thing']}")


def cloze(rng: Random) -> Item:
    """A text whose last word follows from what was said before, as in LAMBADA. Greedy."""
    a, b = rng.sample(PEOPLE, 2)
    own, other = rng.sample(THINGS, 2)
    place, place2 = rng.sample(PLACES, 2)
    she, her_, _ = her(a)
    facts = shuffled(rng, [f"{a} lost {her_} {own}.", f"{b} lost {her(b)[1]} {other}."])
    search = rng.choice(("They looked at the {p} and at the {q}.", "They went to the {p}, but not to the {q}."))
    ending = rng.choice(
        (f"At last {a} found {her_}", f"When {she} came home, {a} had {her_}", f"Now {a} was happy with {her_}")
    )
    text = f"{' '.join(facts)} {search.format(p=place, q=place2)} {ending}"
    return Item(text, f" {own}", key=f"{a} {own} {other}")


def understanding(rng: Random) -> Item:
    """A question about one of three people in a short text. Four choices, chance 1/4."""
    text, questions = _belongings(rng)
    at = rng.randrange(3)
    question, answer, words, key = questions[at][rng.randrange(3)]
    choices = tuple(f" {word}" for word in shuffled(rng, words))
    return Item(text + question, answer, key=key, choices=choices)


def belongings(rng: Random) -> Scene:
    """A text as for `understanding` with all that can be asked about it: what training reads."""
    text, questions = _belongings(rng)
    return text, [(question, answer, key) for group in questions for question, answer, _, key in group]


def _belongings(rng: Random) -> tuple[str, list[list[tuple[str, str, list[str], str]]]]:
    """A text, and for each of its people three questions with answer, choices and key."""
    people = rng.sample(PEOPLE, 3)
    things, places, colours = (rng.sample(words, 4) for words in (THINGS, PLACES, COLOURS))
    of_each = list(zip(people, colours, things, places, strict=False))
    text = " ".join(
        f"{person} is at the {place}. {person} holds the {thing}. The {thing} is {colour}."
        for person, colour, thing, place in of_each
    )
    questions = [
        [
            (f"\nQuestion: {question}\nAnswer: {begin}", f" {answer}", words, f"{person} {thing} {place}")
            for question, begin, answer, words in (
                (f"Where is {person}?", f"{person} is at the", place, places),
                (f"What does {person} hold?", f"{person} holds the", thing, things),
                (f"What colour is the {thing}?", f"The {thing} is", colour, colours),
            )
        ]
        for person, colour, thing, place in of_each
    ]
    return text, questions


def description(rng: Random) -> Item:
    """A sentence made from a list of fields, as in E2E. Written, compared as a whole."""
    person, thing, place = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(PLACES)
    colour, quality = rng.choice(COLOURS), rng.choice(QUALITIES)
    fields = [f"name = {person}", f"thing = {thing}", f"colour = {colour}", f"place = {place}", f"kind = {quality}"]
    answer = english(f" {person} has a {quality} {colour} {thing} at the {place}.")
    return Item(f"{'; '.join(shuffled(rng, fields))}\nText:", answer, key=f"{thing} {colour} {place}")
