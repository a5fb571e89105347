"""A judge that is asked each question once: judgements in a file, one line each, there as soon as they are paid for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from ...errors import JudgeError
from ..lines import append_line, read_lines
from .judge import MAX_TOKENS, TEMPERATURE, Judge, Messages

_KEY: Final = "key"
_JUDGEMENT: Final = "judgement"


class CachedJudge:
    """A judge with a memory in the file `path`, made where it is not there.

    A judgement is known again by the name of the judge, all messages, its longest length and the temperature; not by
    the address, so a server that moved to another port is not asked again. A line that was cut off, because the
    process was killed or the disk was full, counts as not there. Several processes may share a file.
    """

    def __init__(self, judge: Judge, path: str | Path) -> None:
        self.judge = judge
        self.name = judge.name
        self.max_tokens: int = getattr(judge, "max_tokens", MAX_TOKENS)
        self.path = Path(path)
        self._known = _read(self.path)

    def __repr__(self) -> str:
        return f"CachedJudge({self.judge!r}, {str(self.path)!r})"

    def ask(self, messages: Messages) -> str:
        """The judgement from the file, or a new one, which is on the disk when it is returned.

        Raises:
            JudgeError: the judge does not answer; also says what is kept.
            OSError: the file cannot be written.
        """
        key = self.key(messages)
        if key not in self._known:
            try:
                judgement = self.judge.ask(messages)
            except JudgeError as error:
                kept = "1 judgement is" if len(self._known) == 1 else f"{len(self._known)} judgements are"
                raise JudgeError(
                    f"{error} {kept} kept in {str(self.path)!r}; the same command goes on from there."
                ) from error
            append_line(self.path, {_KEY: key, "judge": self.name, "messages": messages, _JUDGEMENT: judgement})
            self._known[key] = judgement
        return self._known[key]

    def knows(self, messages: Messages) -> bool:
        """Whether the judgement is there, and `ask` costs nothing."""
        return self.key(messages) in self._known

    def key(self, messages: Messages) -> str:
        """What a judgement is found by: a hash of all it depends on."""
        # In ASCII, so that half a surrogate pair, which a cut-off answer may end with, has a hash too.
        text = json.dumps([self.name, messages, self.max_tokens, TEMPERATURE], sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """{key: judgement} of the whole lines of a file; of two judgements of one key the first, which was used first."""
    known: dict[str, str] = {}
    for row in read_lines(path):
        key, judgement = row.get(_KEY), row.get(_JUDGEMENT)
        if isinstance(key, str) and isinstance(judgement, str):
            known.setdefault(key, judgement)
    return known
