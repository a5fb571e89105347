"""How a command ends when it is told to: one sentence, what is kept, and the exit code that shells expect.

Ctrl-C once     what is half written is removed; exit code 130
Ctrl-C twice    the program ends at once, as if killed: the next run removes what is half written
SIGTERM         as Ctrl-C once; exit code 143
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NOTHING = "nothing is left half written"
_said: list[str] = []
"""What follows "stopped", of the command that runs now."""


class StoppedError(BaseException):
    """The program was told to end. No Exception, so that nothing on the way takes it for one of its own."""


def keeps(text: str, *, rank: int = 0) -> None:
    """Say what a run that is stopped now leaves behind, as the end of a sentence.

    Args:
        rank: of this process among several; only the first says it.
    """
    _said[:] = [f"; {text}." if rank == 0 else f": process {rank}."]


@contextlib.contextmanager
def stopping(say: Callable[[str], None]) -> Iterator[None]:
    """Runs a command's body; Ctrl-C and SIGTERM become one sentence and an exit code.

    Raises:
        SystemExit: the program was told to end.
    """
    keeps(_NOTHING)
    with _handling():
        try:
            yield
        except KeyboardInterrupt:
            say(f"stopped{_said[0]}")
            raise SystemExit(128 + signal.SIGINT) from None
        except StoppedError:
            say(f"stopped by a signal{_said[0]}")
            raise SystemExit(128 + signal.SIGTERM) from None


def listen_again() -> None:
    """Put the handler of SIGTERM back where a library has put one of its own in its place."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def _handling() -> Iterator[None]:
    """Handlers of both signals, until the end; only the main thread may set them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.getsignal(signal.SIGINT)
    # who has a handler of their own, or started the program to ignore Ctrl-C (nohup), keeps it
    mine = {signal.SIGTERM: _terminate} | ({signal.SIGINT: _interrupt} if before is signal.default_int_handler else {})
    replaced = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends the program whatever it is at
    raise KeyboardInterrupt


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise StoppedError
