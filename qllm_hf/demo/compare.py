"""Two schemes of one model answer the same message, and every step of it can be shown.

Both are in memory and take turns, token by token, where the limit allows it; else one answers after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .holder import Holder, Twin
from .limits import Limits
from .pieces import Pieces, not_shared
from .writing import encode, write

Finished = Literal["", "end", "length", "stopped", "time"]
SHOW_EVERY: Final = 0.08
"""Seconds between two steps that are shown: a page cannot draw more, and each one costs bytes."""


@dataclass(frozen=True)
class Side:
    """One of the two answers so far.

    Attributes:
        pieces: (text, whether the other answer lacks it) of each token.
        tokens_per_second: of decoding, the prompt not counted; 0 before the second token.
        first_token_seconds: of reading the prompt.
        weight_bytes, cache_bytes: in memory now.
        finished: why it ended; "" if it goes on.
    """

    scheme: str
    pieces: tuple[tuple[str, bool], ...] = ()
    tokens: int = 0
    tokens_per_second: float = 0.0
    first_token_seconds: float = 0.0
    weight_bytes: int = 0
    cache_bytes: int = 0
    finished: Finished = ""

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(piece for piece, _ in self.pieces)


@dataclass(frozen=True)
class Step:
    """Both answers at one moment; `together` says whether both models are in memory."""

    left: Side
    right: Side
    together: bool


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        place: folder or id of the model.
        left, right: schemes.
        messages: of the conversation, for each side, since each goes on from its own answers: role and content.
        chat: in the model's chat template, or plain text that goes on.
    """

    place: str
    left: str
    right: str
    messages: tuple[Sequence[dict[str, str]], Sequence[dict[str, str]]]
    chat: bool = True
    new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


class _Answer:
    """One side while it is written."""

    def __init__(self, question: Question, twin: Twin, messages: Sequence[dict[str, str]], limits: Limits) -> None:
        self.twin, self.most = twin, min(question.new_tokens, limits.new_tokens)
        ids = encode(twin.tokenizer, messages, chat=question.chat, longest=limits.prompt_tokens)
        self.pieces = Pieces(twin.tokenizer)
        self.first = self.decoding = 0.0
        self.cache_bytes = 0
        self.finished: Finished = ""
        self._tokens = write(twin, ids, temperature=question.temperature, seed=question.seed)

    def advance(self) -> None:
        """Write one more token."""
        token = next(self._tokens)
        self.cache_bytes = token.cache_bytes
        if self.first:
            self.decoding += token.seconds
        else:
            self.first = token.seconds
        if token.is_end:
            self.finished = "end"
            return
        self.pieces.add(token.id)
        if len(self.pieces.ids) >= self.most:
            self.finished = "length"

    def side(self, differs: Sequence[bool]) -> Side:
        count = len(self.pieces.ids)
        return Side(
            scheme=self.twin.scheme,
            pieces=tuple(zip(self.pieces.texts, differs, strict=True)),
            tokens=count,
            tokens_per_second=(count - 1) / self.decoding if self.decoding and count > 1 else 0.0,
            first_token_seconds=self.first,
            weight_bytes=self.twin.weight_bytes,
            cache_bytes=self.cache_bytes,
            finished=self.finished,
        )


def compare(
    question: Question, holder: Holder, limits: Limits, *, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Step]:
    """The two answers, step by step; the last step is finished on both sides.

    Args:
        stopped: asked before each token; true ends both answers.

    Raises:
        ConfigError: the conversation is too long.
        ModelError, CheckpointError: the model does not fit, or cannot be loaded.
    """
    together = holder.check(question.place, (question.left, question.right))
    deadline = time.monotonic() + limits.seconds
    answers: list[_Answer | None] = [None, None]
    schemes = (question.left, question.right)
    shown = 0.0

    def step() -> Step:
        ids = [[] if each is None else each.pieces.ids for each in answers]
        # while one is ahead, what the other has not written yet is no difference
        common = min(map(len, ids)) if any(not _done(each) for each in answers) else max(map(len, ids))
        marks = not_shared(ids[0][:common], ids[1][:common])
        sides = [
            Side(scheme) if each is None else each.side([*mark, *[False] * (len(each.pieces.ids) - len(mark))])
            for each, mark, scheme in zip(answers, marks, schemes, strict=True)
        ]
        return Step(sides[0], sides[1], together)

    def start(place: int) -> _Answer:
        keep = schemes if together else ()
        return _Answer(question, holder.take(question.place, schemes[place], keep), question.messages[place], limits)

    for group in ((0, 1),) if together else ((0,), (1,)):
        for place in group:
            answers[place] = start(place)
        active: list[Any] = [answers[place] for place in group]
        while active:
            why: Finished = "stopped" if stopped() else "time" if time.monotonic() > deadline else ""
            for answer in active:
                if why:
                    answer.finished = why
                else:
                    answer.advance()
            active = [answer for answer in active if not answer.finished]
            if active and time.monotonic() - shown >= SHOW_EVERY:
                shown = time.monotonic()
                yield step()
        if not together:
            for place in group:
                _let_go(answers[place])
    yield step()


def _done(answer: _Answer | None) -> bool:
    return answer is not None and bool(answer.finished)


def _let_go(answer: _Answer | None) -> None:
    """What is left of an answer without its model, so that the next one finds room."""
    assert answer is not None
    answer._tokens.close()  # type: ignore[attr-defined]
    answer.twin = Twin(answer.twin.place, answer.twin.scheme, None, None, answer.twin.weight_bytes)
