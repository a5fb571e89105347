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
_kept: list[str] = [_NOTHING]


class StoppedError(BaseException):
    """The program was told to end. No Exception, so that nothing on the way takes it for one of its own."""


def keeps(text: str) -> None:
    """Say what a run that is stopped now leaves behind, as the end of a sentence."""
    _kept[0] = text


@contextlib.contextmanager
def stopping(say: Callable[[str], None]) -> Iterator[None]:
    """Runs a command's body; Ctrl-C and SIGTERM become one sentence and an exit code.

    Raises:
        SystemExit: the program was told to end.
    """
    _kept[0] = _NOTHING
    with _handling():
        try:
            yield
        except KeyboardInterrupt:
            say(f"stopped; {_kept[0]}.")
            raise SystemExit(128 + signal.SIGINT) from None
        except StoppedError:
            say(f"stopped by a signal; {_kept[0]}.")
            raise SystemExit(128 + signal.SIGTERM) from None


@contextlib.contextmanager
def _handling() -> Iterator[None]:
    """Handlers of both signals, until the end; only the main thread may set them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends the program whatever it is at
        raise KeyboardInterrupt

    def terminate(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise StoppedError

    before = signal.getsignal(signal.SIGINT)
    # who has a handler of their own, or started the program to ignore Ctrl-C (nohup), keeps it
    mine = {signal.SIGTERM: terminate} | ({signal.SIGINT: interrupt} if before is signal.default_int_handler else {})
    replaced = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
