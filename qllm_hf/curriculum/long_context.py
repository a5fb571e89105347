"""One line out of many, as in LongEval: `line WORD: NUMBER.`, at a controlled position."""

from __future__ import annotations

from random import Random
from typing import Final

from .item import Item, held_out
from .words import LINE_KEYS

TOKENS_PER_LINE: Final = 7  # of the reference model
TOKENS_OF_QUESTION: Final = 7
LENGTHS: Final = (256, 512, 1024, 2048)
POSITIONS: Final = tuple(part / 10 for part in range(11))  # of the line that is asked for, from first to last


def lines(rng: Random, tokens: int) -> Item:
    """A text of at most `tokens` tokens of the reference model, and the value of one of its lines, at one of
    eleven positions. Greedy."""
    count = (tokens - 1 - TOKENS_OF_QUESTION) // TOKENS_PER_LINE
    text, values = _lines(rng, count)
    position = rng.choice(POSITIONS)
    word, value = list(values.items())[round(position * (count - 1))]
    return Item(
        text + _question(word),
        f" {value}",
        key=_key(word, value),
        meta={"tokens": tokens, "position": position},
    )


def lines_with_many_questions(rng: Random, tokens: int, part: float = 0.5) -> tuple[str, list[tuple[str, str]]]:
    """Lines, and questions with answers that take about `part` of the tokens: what training reads."""
    questions = int(tokens * part) // TOKENS_OF_QUESTION
    text, values = _lines(rng, (tokens - questions * TOKENS_OF_QUESTION) // TOKENS_PER_LINE)
    for_training = [(word, value) for word, value in values.items() if not held_out(_key(word, value))]
    asked = rng.choices(for_training, k=questions)
    return text, [(_question(word), f" {value}") for word, value in asked]


def _lines(rng: Random, count: int) -> tuple[str, dict[str, int]]:
    words = rng.sample(LINE_KEYS, count)
    values = {word: rng.randint(10, 99) for word in words}
    return "".join(f"line {word}: {value}.\n" for word, value in values.items()), values


def _question(word: str) -> str:
    return f"Find line {word}:"


def _key(word: str, value: int) -> str:
    return f"{word} {value}"
