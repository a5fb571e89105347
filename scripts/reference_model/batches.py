"""Batches of curriculum text: rows of whole documents, and which tokens of them are to be learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import torch

from qllm_hf.curriculum import dialogue, emergent, stories, trust
from qllm_hf.curriculum.dialogue import END
from qllm_hf.curriculum.item import english, held_out, shuffled
from qllm_hf.curriculum.long_context import lines_with_many_questions
from qllm_hf.curriculum.tasks import TASKS, Task, training_item
from qllm_hf.curriculum.words import COLOURS, KINDS, LABELS, LINE_KEYS, PEOPLE, PLACES, THINGS

KINDS_OF_WORDS, FEW_WORDS, MEMBERS = "kinds", "few words", "members"
PAIRS, BINDINGS, MARKS, OF_PEOPLE = "pairs", "bindings", "marks", "answers about people"
IN_WORDS, IN_WORDS_ONCE = "shown answers in words", "shown answers in words, one of each person"
# How many short documents are of each task, in parts.
FIRST_SHARES = {
    "stories": 5,
    "cloze": 5,
    "understanding": 8,
    "description": 3,
    "in_context": 10,
    "formatting": 6,
    "arithmetic": 14,
    "rules": 12,
    IN_WORDS: 12,
    "ethics": 5,
    "robustness": 6,
    "unanswerable": 6,
    "first_turn": 2,
    "second_turn": 6,
    KINDS_OF_WORDS: 4,
    FEW_WORDS: 8,
    MEMBERS: 12,
}
# When it is known whether a word was there, whether an answer is right can be learned from it.
JUDGING_SHARES = {
    "stories": 4,
    "cloze": 3,
    "understanding": 3,
    "description": 1,
    "in_context": 10,
    "formatting": 10,
    "arithmetic": 14,
    "rules": 6,
    "ethics": 2,
    "robustness": 3,
    "unanswerable": 4,
    "first_turn": 1,
    "second_turn": 6,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 4,
    MEMBERS: 8,
    IN_WORDS_ONCE: 32,
}
# The same when the easy ones are learned.
LATER_SHARES = {
    "stories": 5,
    "cloze": 5,
    "understanding": 4,
    "description": 1,
    "in_context": 20,
    "formatting": 14,
    "arithmetic": 14,
    "rules": 14,
    "ethics": 3,
    "robustness": 3,
    "unanswerable": 3,
    "first_turn": 1,
    "second_turn": 8,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 4,
    MEMBERS: 4,
    PAIRS: 8,
    BINDINGS: 8,
    IN_WORDS_ONCE: 16,
}
# What takes longest: sums, second turns, and judging in few words.
JUDGING_AGAIN_SHARES = {
    "stories": 5,
    "cloze": 4,
    "understanding": 3,
    "description": 1,
    "in_context": 8,
    "formatting": 10,
    "arithmetic": 26,
    "rules": 6,
    OF_PEOPLE: 24,
    "ethics": 2,
    "robustness": 2,
    "unanswerable": 8,
    "first_turn": 2,
    "second_turn": 12,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 2,
    MEMBERS: 6,
    PAIRS: 14,
    BINDINGS: 4,
}
# For a while, marking and little else.
MARKING_SHARES = {
    "stories": 3,
    "cloze": 2,
    "understanding": 2,
    "description": 1,
    "in_context": 4,
    "formatting": 6,
    "arithmetic": 12,
    "rules": 3,
    OF_PEOPLE: 40,
    "ethics": 2,
    "robustness": 2,
    "unanswerable": 6,
    "first_turn": 1,
    "second_turn": 6,
    KINDS_OF_WORDS: 1,
    FEW_WORDS: 1,
    MEMBERS: 6,
    BINDINGS: 2,
    MARKS: 30,
}
# At the end, sums and second turns.
LAST_SHARES = {
    "stories": 5,
    "cloze": 4,
    "understanding": 3,
    "description": 1,
    "in_context": 8,
    "formatting": 12,
    "arithmetic": 28,
    "rules": 6,
    "calibration": 10,
    "ethics": 2,
    "robustness": 3,
    "unanswerable": 6,
    "first_turn": 2,
    "second_turn": 18,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 2,
    MEMBERS: 1,
    PAIRS: 6,
    BINDINGS: 10,
}
SCENES = {
    "calibration": emergent.shown_answers,
    "understanding": stories.belongings,
    "robustness": trust.claims,
    "unanswerable": trust.strangers,
}
# A prompt is mostly random words. Learning a part of it keeps the model fluent without drowning the answers.
PROMPT_PART = 0.1
FIRST_TURN = Task("first_turn", "dialogue", dialogue.first_turn, "written")
LOOKAHEAD = 64  # documents that wait to fill the end of a row
ARE_THEY_RIGHT = "\nIs that right?\n"
SHORTEST = 40  # tokens of a document of lines


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    Attributes:
        tokens: int64 [B, T].
        learned: bool [B, T]: the tokens that count, to be predicted from those before them.
    """

    tokens: torch.Tensor
    learned: torch.Tensor


T = TypeVar("T")
Document = list[tuple[str, bool]]  # pieces of text, and whether each is an answer


def short_document(rng: Random, shares: Mapping[str, float] = FIRST_SHARES) -> Document:
    """A story, or a text with its answers. Where a text allows it, more is learned from it than a test asks for."""
    name = rng.choices(list(shares), weights=list(shares.values()))[0]
    if name in EXERCISES:
        return EXERCISES[name](rng)
    if name in SCENES:
        text, questions = SCENES[name](rng)
        pieces: Document = [(text, False)]
        for question, answer, key in shuffled(rng, questions):
            if not held_out(key):
                pieces += [(question, False), (answer, True)]
        return [*pieces, (END, True)]
    item = training_item(TASKS[name], rng)
    if name == "in_context":  # every example after the first of its kind can be told from those before it
        examples = re.split(r"(?<=:)(.*\n?)", item.prompt)
        return [(text, at % 2 == 1) for at, text in enumerate(examples[:-1])] + [(item.answer + END, True)]
    return [(item.prompt, False), (item.answer + END, True)]


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


def long_document(rng: Random, tokens: int) -> Document:
    """Lines that take almost `tokens` tokens with the questions about them."""
    text, questions = lines_with_many_questions(rng, tokens - 2)
    pieces: Document = [(text, False)]
    for question, answer in questions:
        pieces += [(question, False), (f"{answer}\n", True)]
    return pieces


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


EXERCISES = {
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


class Batches:
    """An endless row of batches that depend on the seed and nothing else.

    Rows hold lines if `lines`; else short documents, and `repetitions` of them are repetitions (0 to 1),
    the others of the tasks in `shares`.
    """

    def __init__(
        self,
        tokenizer: Any,
        rows: int,
        length: int,
        *,
        seed: str,
        lines: bool = False,
        repetitions: float = 0.0,
        shares: Mapping[str, float] = FIRST_SHARES,
    ) -> None:
        self.tokenizer, self.rows, self.length = tokenizer, rows, length
        self.lines, self.repetitions, self.shares = lines, repetitions, shares
        self.rng = Random(seed)
        self.waiting: list[tuple[list[int], list[bool]]] = []

    def next(self) -> Batch:
        """The next batch."""
        tokens = torch.full((self.rows, self.length), self.tokenizer.pad_token_id)
        learned = torch.zeros((self.rows, self.length), dtype=torch.bool)
        for row in range(self.rows):
            ids, answers = self._fill_row()
            tokens[row, : len(ids)] = torch.tensor(ids)
            learned[row, : len(ids)] = torch.tensor(answers)
        return Batch(tokens, learned)

    def _fill_row(self) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        answers: list[bool] = []
        lookahead = LOOKAHEAD if self.length < 1024 else LOOKAHEAD // 8
        while True:
            if len(self.waiting) < lookahead:
                self.waiting += self._encode([self._document() for _ in range(lookahead)])
            room = self.length - len(ids)
            fits = next((i for i, (document, _) in enumerate(self.waiting) if len(document) <= room), None)
            if fits is None:
                return ids, answers
            document, mask = self.waiting.pop(fits)
            ids += document
            answers += mask

    def _document(self) -> Document:
        if self.lines:  # half of them fill a row, the others are of every length
            length = self.length - 1 if self.rng.random() < 0.5 else self.rng.randint(SHORTEST, self.length - 1)
            return long_document(self.rng, length)
        return repetition(self.rng) if self.rng.random() < self.repetitions else short_document(self.rng, self.shares)

    def _encode(self, documents: list[Document]) -> list[tuple[list[int], list[bool]]]:
        pieces = [text for document in documents for text, _ in document]
        encoded = iter(self.tokenizer(pieces, add_special_tokens=False)["input_ids"])
        result = []
        for document in documents:
            ids, answers = [self.tokenizer.bos_token_id], [False]
            for _, is_answer in document:
                piece = next(encoded)
                ids += piece
                answers += [is_answer or self.rng.random() < PROMPT_PART for _ in piece]
            result.append((ids, answers))
        return result
