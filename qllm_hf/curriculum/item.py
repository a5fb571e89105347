"""One question of the curriculum, and the border between what is trained on and what is tested."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeVar

HELD_OUT_PART: Final = 8  # one key in eight is for tests alone

T = TypeVar("T")
Scene = tuple[str, list[tuple[str, str, str]]]
"""A text with several questions about it, each with its answer and the key of both."""


@dataclass(frozen=True)
class Item:
    """A prompt and its answer.

    Attributes:
        prompt: what the model reads.
        answer: what it should write next, with its leading space; never empty.
        key: what makes this item this item. It decides on which side of the border it lies, so two items
            that differ only in words that do not matter share one key.
        choices: answers to choose from, `answer` among them; empty if the answer is to be written.
        target: the part of `answer` that is scored if it is written; all of it if empty.
        meta: facts about the item that scores are grouped by, such as the position of a line.
    """

    prompt: str
    answer: str
    key: str
    choices: tuple[str, ...] = ()
    target: str = ""
    meta: dict[str, float] = field(default_factory=dict)


def held_out(key: str) -> bool:
    """Whether items with this key are for tests alone: a property of the key, the same in every process."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_PART == 0


def shuffled(rng: Random, values: Sequence[T]) -> list[T]:
    """A new list with the values in random order."""
    return rng.sample(values, len(values))


def english(text: str) -> str:
    """The text with "a" written "an" before a vowel: what templates cannot know."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
