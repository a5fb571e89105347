"""Ctrl-C, SIGTERM and what the system refuses: one sentence, and the exit code that shells expect."""

import errno
import os
import signal
import sys

import pytest

from qllm_hf.cli.output import answer, answering, note
from qllm_hf.cli.refusals import refusal
from qllm_hf.cli.stopping import keeps, listen_again


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "stopped; "), (signal.SIGTERM, 143, "stopped by a signal; ")],
)
def test_a_command_that_is_stopped_says_what_is_kept(number, code, words, capsys):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    cleaned = []
    with pytest.raises(SystemExit) as stopped, answering():
        keeps("everything is kept")
        try:
            signal.raise_signal(number)
        except Exception:  # as libraries do that go on after any error
            pytest.fail("an Exception would be swallowed")
        finally:
            cleaned.append(True)
    assert stopped.value.code == code and cleaned
    assert capsys.readouterr().err == f"{words}everything is kept.\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_what_is_kept_is_of_this_command(capsys):
    with answering():
        keeps("something of the one before")
    with pytest.raises(SystemExit), answering():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped; nothing is left half written.\n"


def test_one_of_several_processes_says_what_is_kept(capsys):
    with pytest.raises(SystemExit), answering():
        keeps("everything is kept", rank=3)
        signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err == "stopped by a signal: process 3.\n"


def test_a_handler_of_a_library_is_replaced_until_the_command_ends(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, answering():
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("a library has the last word"))  # as ray.init does
        listen_again()
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143 and "nothing is left half written" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_ctrl_c_ends_at_once():
    child = os.fork()
    if child == 0:
        try:
            with answering():
                try:
                    signal.raise_signal(signal.SIGINT)
                finally:
                    signal.raise_signal(signal.SIGINT)  # while it cleans up
                    os._exit(1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_a_program_that_ignores_ctrl_c_goes_on():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup
    try:
        with answering():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "'out/x': no space left on device. What was there"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            "'out': permission denied. What was there is as it",
        ),
        (OSError(errno.EROFS, "Read-only file system", "out"), "give another place."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "o" * 300), "Give a shorter name."),
        (
            OSError(errno.EBUSY, "Device or resource busy", "out"),
            "'out': device or resource busy. What was there is as",
        ),
    ],
)
def test_what_the_system_refuses_names_the_file(error, words, capsys):
    with pytest.raises(SystemExit) as ended, answering():
        raise error
    said = capsys.readouterr().err
    assert ended.value.code == 1 and words in said
    assert said.startswith("error: ") and said.count("\n") == 1 and "--debug" not in said


def test_a_copy_for_which_there_is_no_room_is_named_and_not_its_source():
    assert refusal(OSError(errno.ENOSPC, "No space left on device", "from/x", None, "to/x")).startswith(
        "'to/x': no space"
    )


def test_streams_that_are_closed_are_no_error(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with answering():
        note("nobody hears it")
        answer({}, "nor that", as_json=False)


def test_an_error_that_names_no_file_is_shown_as_it_is(capsys):
    assert refusal(OSError("no weights")) is None
    with pytest.raises(SystemExit), answering():
        raise OSError("no weights")
    assert "OSError: no weights (--debug" in capsys.readouterr().err
