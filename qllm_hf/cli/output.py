"""What every command shares: where text, JSON, warnings and errors go, and the exit code.

stdout   the answer: text, or one JSON object with --json
stderr   progress, warnings, errors (with --json, {"error": {"type", "message"}})
exit     0 done, 1 could not be done, 2 the command line itself makes no sense, 130 and 143 stopped (`stopping`)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import QllmError, QllmWarning
from ..shown import printable
from .refusals import refusal
from .stopping import stopping


class UsageError(QllmError):
    """Options that do not go together: exit code 2."""


@contextlib.contextmanager
def answering(*, as_json: bool = False, quiet: bool = False, debug: bool = False) -> Iterator[None]:
    """Runs a command's body: errors become one sentence and an exit code, our warnings one line.

    Raises:
        SystemExit: the body raised; the code is 2 for UsageError, else 1. With `debug`, or QLLM_DEBUG=1, the
            exception itself leaves.
    """
    with warnings.catch_warnings(), stopping(note), _only_answers_on_stdout():
        _show_warnings_plainly()
        try:
            _calm_transformers(quiet)
            yield
        except BrokenPipeError:  # `qllm-hf ... | head`: the command line library ends the program quietly
            raise
        except Exception as error:  # the border of the program: nothing is hidden, --debug shows all of it
            if debug or os.environ.get("QLLM_DEBUG") == "1":
                raise
            print_error(error, as_json=as_json)
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


@contextlib.contextmanager
def one_answer(one_model: bool) -> Iterator[None]:
    """Where several processes run one model, the first speaks for all of them; at the end they part."""
    if not one_model or "RANK" not in os.environ:
        yield
        return
    with contextlib.ExitStack() as stack:
        if os.environ["RANK"] != "0":
            silence = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        yield
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _only_answers_on_stdout() -> Iterator[None]:
    """Among several processes, what libraries print past Python goes to stderr.

    The Gloo of torch 2.8 reports each of its connections on stdout, in the middle of a JSON object.
    """
    if "RANK" not in os.environ or sys.stdout is None or sys.stderr is None:
        yield
        return
    real, is_real = sys.stdout, sys.stdout is sys.__stdout__
    real.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.ExitStack() as stack:
            if is_real:
                ours = os.fdopen(kept, "w", encoding=real.encoding, errors=real.errors, closefd=False)
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(ours)))
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def answer(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a command's result on stdout: `data` as JSON, or `text`, in which nothing acts on a terminal."""
    if sys.stdout is None:  # it was closed: nobody wants the answer
        return
    sys.stdout.write((json.dumps(data, indent=2) if as_json else printable(text)) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a remark that is not part of the answer on stderr; names in it may come from files of others."""
    if sys.stderr is None:
        return
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def print_error(error: Exception, *, as_json: bool) -> None:
    """Print an error on stderr: our message, what the system refused, else its type and the way to see more."""
    message = str(error)
    if isinstance(error, OSError) and (said := refusal(error)):
        message = said
    elif not isinstance(error, QllmError):
        first = message.strip().split("\n")[0]
        message = f"{type(error).__name__}: {first} (--debug shows where this comes from)"
    if as_json:
        note(json.dumps({"error": {"type": type(error).__name__, "message": message}}))
    else:
        note(f"error: {message}")


def _show_warnings_plainly() -> None:
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, QllmWarning):
            note(f"warning: {message}")
        else:
            shown(message, category, *args, **kwargs)

    warnings.showwarning = show


def _calm_transformers(quiet: bool) -> None:
    """transformers reports only errors; `quiet` hides its progress bars too."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if quiet:
        logging.disable_progress_bar()
