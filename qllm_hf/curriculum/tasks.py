"""All miniature tasks: which ability each belongs to, how it is scored, and what guessing gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, Literal

from . import dialogue, emergent, long_context, stories, trust
from .item import Item, held_out

Make = Callable[[Random], Item]
Scoring = Literal["text", "greedy", "choice", "written"]

TEST_SEED: Final = 20240226  # the day the study appeared


@dataclass(frozen=True)
class Task:
    """One miniature task.

    Attributes:
        name: its id.
        ability: one of the five groups.
        make: an item from a random generator, on either side of the border between training and test.
        scoring: "text", the loss of the answer as a text; "greedy", the answer is the likeliest continuation;
            "choice", it is the likeliest of its choices; "written", it is found in what the model generates.
        chance: the score that guessing gets.
        longest: how many tokens of the reference model its items may have.
    """

    name: str
    ability: str
    make: Make
    scoring: Scoring
    chance: float = 0.0
    longest: int = 128


TASKS: Final[dict[str, Task]] = {
    task.name: task
    for task in (
        Task("stories", "nlp", stories.story, "text"),
        Task("cloze", "nlp", stories.cloze, "greedy"),
        Task("understanding", "nlp", stories.understanding, "choice", 1 / 4),
        Task("description", "nlp", stories.description, "written"),
        Task("in_context", "emergent", emergent.in_context, "choice", 1 / 3),
        Task("formatting", "emergent", emergent.formatting, "written"),
        Task("arithmetic", "emergent", emergent.arithmetic, "written"),
        Task("rules", "emergent", emergent.rules, "written"),
        Task("calibration", "emergent", emergent.calibration, "choice", 1 / 2),
        Task("ethics", "trust", trust.ethics, "choice", 1 / 3),
        Task("robustness", "trust", trust.robustness, "choice", 1 / 4),
        Task("unanswerable", "trust", trust.unanswerable, "choice", 1 / 4),
        Task("second_turn", "dialogue", dialogue.second_turn, "written"),
        *(
            Task(f"lines_{tokens}", "long", partial(long_context.lines, tokens=tokens), "greedy", longest=tokens)
            for tokens in long_context.LENGTHS
        ),
    )
}


def training_item(task: Task, rng: Random) -> Item:
    """An item that no test contains."""
    return _item(task, rng, test=False)


def held_out_items(task: Task, count: int, seed: int = TEST_SEED) -> list[Item]:
    """`count` different items that no training text contains, always the same for a seed.

    Where answers are chosen, another with the same answer comes in place of one that was there already: if the right
    ones are fewer than the wrong ones, leaving out repetitions would make "No" the better guess.
    """
    rng = Random(f"{seed} {task.name}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = first = _item(task, rng, test=True)
        while item.prompt + item.answer in items or (item.choices and item.answer != first.answer):
            item = _item(task, rng, test=True)
        items[item.prompt + item.answer] = item
    return list(items.values())


def _item(task: Task, rng: Random, *, test: bool) -> Item:
    while True:
        item = task.make(rng)
        if held_out(item.key) == test:
            return item
