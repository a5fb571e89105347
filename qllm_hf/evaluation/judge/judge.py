"""What a judge is: something with a name that answers a conversation, the same way each time."""

from __future__ import annotations

from typing import Final, Protocol

# Section 2.4 of the study.
TEMPERATURE: Final = 0.0
MAX_TOKENS: Final = 2048
"""Of one judgement."""

Messages = list[dict[str, str]]
"""One conversation: [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}]."""


class Judge(Protocol):
    """A language model that rates answers.

    A judge may also have `max_tokens`, the length of its longest judgement: a cache then keeps judgements of another
    length apart.
    """

    @property
    def name(self) -> str:
        """What records and caches call it. Two judges of one name have to give the same judgements."""

    def ask(self, messages: Messages) -> str:
        """The judgement, as text. It may be empty.

        Raises:
            JudgeError: there is none, and asking again would not help.
        """
