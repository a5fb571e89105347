"""A conversation with two schemes: from what a visitor has filled in to the steps of both answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..errors import QllmError
from ..page.html import text
from .compare import Question, Step, compare
from .gpu import on_gpu
from .host import Host
from .limits import check_prompt, check_scheme, describe_scheme

CHAT, TEXT = "Chat", "Continue the text"


def new_talk() -> dict[str, Any]:
    """A conversation without turns: {"setup": what it was held with, "turns": [{"user", "left", "right"}]}."""
    return {"setup": None, "turns": []}


def scheme_note(typed: str) -> str:
    """What a scheme means, or why it is none, as HTML: for every key that is pressed."""
    try:
        return f'<p class="qllm-note" role="status">{text(describe_scheme(check_scheme(typed)))}</p>'
    except QllmError as error:
        return f'<p class="qllm-note qllm-bad" role="status">{text(error)}</p>'


def messages_of(turns: list[dict[str, str]], side: str, message: str) -> list[dict[str, str]]:
    """The conversation of one side, which goes on from its own answers."""
    found: list[dict[str, str]] = []
    for turn in turns:
        found += [{"role": "user", "content": turn["user"]}, {"role": "assistant", "content": turn[side]}]
    return [*found, {"role": "user", "content": message}]


def question_of(host: Host, message: str, setup: tuple[str, str, str, str], turns: list[dict[str, str]]) -> Question:
    """What is asked with the values of the form.

    Raises:
        QllmError: one of them cannot be.
    """
    model, left, right, mode = setup
    place = host.model(model)
    message = check_prompt(message, host.limits)
    schemes = [str(check_scheme(each)) for each in (left, right)]
    chat = mode == CHAT
    sides = tuple(messages_of(turns, side, message) for side in ("left", "right"))
    return Question(place, schemes[0], schemes[1], (sides[0], sides[1]), chat)


def writer(host: Host) -> Callable[[Question, str], Iterator[Step]]:
    """What writes the two answers to a question of one visitor, which `host.sessions.stop(visitor)` ends.

    ZeroGPU runs it in another process: only questions and steps go between, and the page itself is no argument.
    """

    @on_gpu
    def steps(question: Question, visitor: str) -> Iterator[Step]:
        with host.sessions.answering(visitor) as run:
            yield from compare(question, host.holder, host.limits, stopped=run.is_stopped)

    found: Callable[[Question, str], Iterator[Step]] = steps
    return found
