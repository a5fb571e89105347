"""How a campaign reads a file: by a command in this process, whose words are looked at, or by a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.errors import QllmError

ACTS_ON_TERMINALS = ("\x1b", "\x07", "\u202e", "\r")
ACTS_ON_PAGES = ("<script>alert", "<img src=x", "](javascript:")


class Subject(NamedTuple):
    """A kind of file.

    Attributes:
        make: an undamaged folder with such files.
        files: those of a folder that are damaged.
        read: (folder, a folder for what is written) -> what comes of them, to be compared.
        says_so: other data are no fault: nothing but the file says what is right.
        without: damages that are not tried.
        is_quick: less than a tenth of a second; such kinds have eight cases where others have one.
    """

    make: Callable[[Path], None]
    files: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], Any]
    says_so: bool = False
    without: tuple[str, ...] = ()
    is_quick: bool = True


class SaidError(QllmError):
    """What a command said when it was not done."""


class WrongWordsError(Exception):
    """A command that ended otherwise than with an answer or one sentence of ours."""


def command(*arguments: object) -> str:
    """The answer of a command; what it said beside goes to `spoken`.

    Raises:
        SaidError: it was not done, and said why in one sentence.
        WrongWordsError: it said something else, or something that acts on a terminal.
    """
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    spoken.append(done.stderr)
    look_at(done.output, ACTS_ON_TERMINALS)
    if done.exit_code == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    is_ours = done.exit_code in (1, 2) and "--debug shows" not in done.output and "Traceback" not in done.output
    if not is_ours or len(lines) > 12 or not any(line.startswith(("error: ", '{"error"')) for line in lines):
        raise WrongWordsError(f"exit code {done.exit_code}: {done.exception!r} {done.output[-800:]}")
    raise SaidError("\n".join(lines))


spoken: list[str] = []
"""What commands wrote on stderr since the case began."""


def look_at(text: str, forbidden: tuple[str, ...]) -> None:
    """Raises WrongWordsError if a text holds what acts where it is shown."""
    found = next((each for each in forbidden if each in text), None)
    if found is not None:
        place = text.index(found)
        raise WrongWordsError(f"{found!r} acts in {text[max(0, place - 80) : place + 80]!r}")


def answered(text: str) -> Any:
    """The JSON of an answer."""
    return json.loads(text)
