"""Token ids as pieces of text, and which of them two answers do not share."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """The text of an answer token by token: `texts[i]` is what the i-th token adds to it.

    A character that takes several tokens belongs to the one that completes it; those before it add "".
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._start = 0  # of the tokens that are decoded again with each new one
        self._before = ""  # their text so far
        self.ids: list[int] = []
        self.texts: list[str] = []

    def add(self, token: int) -> str:
        """Take one more token; what it adds comes back."""
        self.ids.append(token)
        text: str = self._tokenizer.decode(self.ids[self._start :], skip_special_tokens=True)
        if text.endswith(_UNFINISHED):
            self.texts.append("")
            return ""
        piece = text[len(self._before) :]
        self.texts.append(piece)
        self._before = text
        # a few tokens of context keep spaces right; more would make long answers slow
        if len(self.ids) - self._start > 16:
            self._start = len(self.ids) - 4
            self._before = self._tokenizer.decode(self.ids[self._start :], skip_special_tokens=True)
        return piece


def not_shared(left: Sequence[int], right: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """For each token of two answers, whether the other one lacks it at that place of a common order.

    >>> not_shared([1, 2, 3], [1, 9, 3])
    ([False, True, False], [False, True, False])
    """
    differs = [True] * len(left), [True] * len(right)
    for block in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            differs[0][block.a + offset] = differs[1][block.b + offset] = False
    return differs
